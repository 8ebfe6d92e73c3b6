#!/usr/bin/env python3
"""Containers with the real containerd and nydus-snapshotter: pull, first start, second start.

usage: .venv/bin/python scripts/bench/container_starts.py [--rounds N] [--image DIR]

Beside each other in one run: our nydusd, the original (NYDUS_REAL_DAEMON, or built by
scripts/peers), and the same files as a plain OCI image on overlayfs.  A start is the whole of
`ctr run --rm` of an interpreter that prints a line; each round begins with empty caches and a
new containerd.  Needs root, scripts/peers and a Nydus image (golden: layers-zstd).
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "kit")]

from containerd import Stack, running  # noqa: E402 - found by the path above
from real_daemon import OURS, original  # noqa: E402
from servers import OCI_MANIFEST, Pusher  # noqa: E402

GOLDEN = ROOT.parent / "shared" / "golden" / "images" / "layers-zstd"
ARGV = ("/usr/bin/python3.11", "-S", "-c", "import os; print(os.getpid())")


def plain_layer(image: Path, work: Path) -> bytes:
    """All files of the image as one tar.gz."""
    tar = work / "plain.tar"
    subprocess.run(
        [
            OURS.with_name("nydus-image"), "unpack", "-B", image / "image.boot", "--output", tar,
            "--backend-type", "localfs",
            "--backend-config", json.dumps({"dir": str(image / "blobs")}),
        ],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return gzip.compress(tar.read_bytes(), 6)


def push_plain(rig: Stack, layer: bytes) -> str:
    diff = hashlib.sha256(gzip.decompress(layer)).hexdigest()
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{diff}"]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode()
    kind = "application/vnd.oci.image"
    with Pusher(rig.host, "plain") as push:
        parts: list[dict[str, Any]] = [
            {"mediaType": f"{kind}.{name}", "digest": f"sha256:{push.blob(data)}",
             "size": len(data)}
            for name, data in (("config.v1+json", config), ("layer.v1.tar+gzip", layer))
        ]  # fmt: skip
        push.manifest(
            "latest",
            {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": parts[0],
             "layers": parts[1:]},
        )  # fmt: skip
    return f"{rig.host}/plain:latest"


def took(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def drop_caches() -> None:
    os.sync()
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("1")


def lazily(rig: Stack, image: Path) -> Iterator[float]:
    reference = rig.push(image)
    drop_caches()
    yield took(lambda: rig.pull(reference))
    for name in ("first", "second"):
        yield took(lambda name=name: rig.run_container(reference, name, *ARGV))  # type: ignore[misc]


def plainly(rig: Stack, layer: bytes) -> Iterator[float]:
    reference = push_plain(rig, layer)
    drop_caches()
    yield took(lambda: rig.ctr("images", "pull", "--plain-http", reference))
    for name in ("first", "second"):
        run = ("run", "--rm", "--snapshotter", "overlayfs", reference, name, *ARGV)
        yield took(lambda run=run: rig.ctr(*run))  # type: ignore[misc]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--image", type=Path, default=GOLDEN, help="image.boot and blobs/")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        work = Path(directory)
        wrapper = work / "nydusd"  # the original wants a limit of open files that may not be had
        wrapper.write_text(
            f'#!/bin/sh\ncase "$1" in fuse|singleton) exec {original()} "$@" --rlimit-nofile 0;;\n'
            f'*) exec {original()} "$@";; esac\n'
        )
        wrapper.chmod(0o755)
        layer = plain_layer(args.image, work)
        times: dict[str, list[list[float]]] = {"ours": [], "nydusd": [], "plain OCI": []}
        for _ in range(args.rounds):
            for name, program in (("ours", OURS), ("nydusd", wrapper)):
                with running(nydusd=program) as rig:
                    times[name].append(list(lazily(rig, args.image)))
                    if name == "ours":
                        times["plain OCI"].append(list(plainly(rig, layer)))
    print(f"{'seconds':12}{'pull':>8}{'first':>8}{'second':>8}{'pull + first':>14}")
    for name, rounds in times.items():
        pull, first, second = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"{name:12}{pull:8.2f}{first:8.2f}{second:8.2f}{pull + first:14.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
