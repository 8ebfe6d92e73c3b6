#!/usr/bin/env python3
"""Cost against size: mounts on one node, files of one image.

    scripts/bench/scale.py [--mounts N,N…] [--files N,N…] [--json FILE] [--svg FILE] [--work DIR]

Each row names the size, and seconds, CPU seconds and memory of the service; nothing may grow faster
than the size.  ``take-over``: from the service's kill to the answer of a successor that has all
mounts.  Root; everything lies below ``--work`` (a new directory of /var/tmp), and is removed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import cold_kit as kit  # noqa: E402 - found by the path above
import cold_plot  # noqa: E402

FILES_EACH = 1000  # of a directory
PATIENCE_S = 120.0
Row = dict[str, Any]


def make_image(work: Path, files: int) -> tuple[Path, Path]:
    """(bootstrap, directory of blobs) of an image of so many small files."""
    boot, blobs = work / f"boot-{files}", work / f"blobs-{files}"
    if boot.exists():
        return boot, blobs
    blobs.mkdir()
    build = subprocess.Popen(
        [*kit.BUILD, "create", "-t", "tar-rafs", "-B", str(boot), "-D", str(blobs), "-"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=kit.REPO,
    )  # fmt: skip
    with tarfile.open(fileobj=build.stdin, mode="w|") as tar:
        for number in range(files):
            directory = f"d{number // FILES_EACH:05}"
            if number % FILES_EACH == 0:
                info = tarfile.TarInfo(directory)
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            data = b"file %d\n" % number
            info = tarfile.TarInfo(f"{directory}/f{number % FILES_EACH:03}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert build.stdin is not None
    build.stdin.close()
    if build.wait():
        raise SystemExit("scale: the image was not built")
    return boot, blobs


class Node:
    """A daemon of a root of its own."""

    def __init__(self, work: Path) -> None:
        self.daemon = kit.Daemon(work / "root")
        self.work = work

    def __enter__(self) -> Node:
        self.daemon.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.daemon.stop()
        shutil.rmtree(self.daemon.root, ignore_errors=True)

    def mount(self, boot: Path, blobs: Path, at: Path) -> None:
        at.mkdir(exist_ok=True)
        self.daemon.client.call(
            "POST", "/v1/mounts",
            {"bootstrap": str(boot), "backend": {"type": "localfs", "localfs": {"dir": str(blobs)}},
             "prefetch": "none", "mountpoint": str(at), "transport": "auto"},
        )  # fmt: skip

    def resident(self) -> float:
        lines = Path(f"/proc/{self.daemon.status()['pid']}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024

    def take_over(self, mounts: int) -> float:
        """Seconds from a kill until a successor has all mounts."""
        killed = self.daemon.status()["pid"]
        os.kill(killed, signal.SIGKILL)
        began = time.monotonic()
        while time.monotonic() - began < PATIENCE_S:
            with contextlib.suppress(Exception):  # nobody answers yet
                status = self.daemon.status()
                if status["pid"] != killed and len(status["mounts"]) >= mounts:
                    break
            time.sleep(0.01)
        return time.monotonic() - began


def of_mounts(work: Path, count: int) -> Row:
    boot, blobs = make_image(work, 1000)
    points = [work / f"m{number}" for number in range(count)]
    with Node(work) as node:
        before, base = node.daemon.usage()[0], node.resident()
        last = 0.0

        def mount_all() -> None:
            nonlocal last
            for point in points:
                last = kit.timed(lambda point=point: node.mount(boot, blobs, point))

        seconds = kit.timed(mount_all)
        cpu = node.daemon.usage()[0] - before
        memory = node.resident() - base
        status = min(kit.timed(node.daemon.status) for _ in range(3))
        take_over = node.take_over(count)
        (points[-1] / "d00000/f001").read_bytes()
    for point in points:
        point.rmdir()
    return {
        "of": "mounts", "size": count, "seconds": seconds, "last_s": last, "cpu_s": cpu,
        "memory_mb": memory, "status_s": status, "take_over_s": take_over,
    }  # fmt: skip


def of_files(work: Path, files: int) -> Row:
    boot, blobs = make_image(work, files)
    point = work / "m"
    with Node(work) as node:
        before, base = node.daemon.usage()[0], node.resident()
        seconds = kit.timed(lambda: node.mount(boot, blobs, point))
        cpu = node.daemon.usage()[0] - before
        memory = node.resident() - base
        (point / "d00000/f001").read_bytes()
    return {
        "of": "files", "size": files, "seconds": seconds, "cpu_s": cpu, "memory_mb": memory,
        "bootstrap_bytes_each": boot.stat().st_size / files,
    }  # fmt: skip


def _sizes(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mounts", type=_sizes, default=[1, 10, 100, 1000])
    parser.add_argument("--files", type=_sizes, default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="scale-", dir=args.work or "/var/tmp"))
    rows: list[Row] = []
    try:
        for sizes, measure in ((args.mounts, of_mounts), (args.files, of_files)):
            for size in sizes:
                row = measure(work, size)
                rows.append(row)
                print(
                    " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                             for k, v in row.items()),
                    flush=True,
                )  # fmt: skip
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if args.json:
        kit.save(args.json, rows)
    if args.svg:
        args.svg.write_text(cold_plot.lines(
            {f"{what}: {name}": [(r["size"], r[name]) for r in rows if r["of"] == what]
             for what, names in (("mounts", ("seconds", "cpu_s", "take_over_s", "status_s")),
                                 ("files", ("seconds", "cpu_s"))) for name in names}
        ))  # fmt: skip


if __name__ == "__main__":
    main()
