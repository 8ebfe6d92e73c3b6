#!/usr/bin/env python3
"""nydusd as nydus-snapshotter uses it: ready to serve, further mounts, memory, container starts.

usage: .venv/bin/python scripts/bench/dropin.py [--images 1,10,100] [--rounds N]

Needs root.  The original runs beside ours in turn where NYDUS_REAL_DAEMON names it or
scripts/peers has built it.  Memory is proportional (PSS): of fronts, their host, service and
keeper together, after each image was listed and one file of it read.  Run it on a quiet machine;
see docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "kit")]

from built import build_image  # noqa: E402 - found by the path above
from real_daemon import OURS, Daemon, end_all, named, started  # noqa: E402

FILES, FILE_SIZE = 100, 20_000


def images(base: Path, count: int) -> list[Path]:
    """Small images with a blob of their own each."""
    found = []
    for number in range(count):
        image = base / f"i{number}"
        (image / "blobs").mkdir(parents=True)
        contents = {f"d{n % 5}/f{n}": os.urandom(FILE_SIZE) for n in range(FILES)}
        build_image(
            image / "tree", contents, "-B", image / "image.boot", "-D", image / "blobs"
        )
        shutil.rmtree(image / "tree")
        found.append(image)
    return found


def config(daemon: Daemon, image: Path, name: str) -> str:
    return json.dumps(
        {
            "device": {
                "id": name,
                "backend": {"type": "localfs", "config": {"dir": str(image / "blobs")}},
                "cache": {"type": "blobcache", "config": {"work_dir": str(daemon.cache)}},
            },
            "mode": "direct", "digest_validate": False, "enable_xattr": True,
            "fs_prefetch": {"enable": False},
        }
    )  # fmt: skip


def mount(daemon: Daemon, image: Path, name: str) -> float:
    """Milliseconds until the call answers."""
    body = {
        "fs_type": "rafs", "source": str(image / "image.boot"),
        "config": config(daemon, image, name),
    }  # fmt: skip
    begin = time.perf_counter()
    status, said = daemon.ask("POST", f"/api/v1/mount?mountpoint={name}", body)
    assert status == 204, said
    return (time.perf_counter() - begin) * 1000


def use(point: Path) -> None:
    assert len([path for path in point.rglob("*") if path.is_file()]) == FILES
    (point / "d0" / "f0").read_bytes()


def pss_mib(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


@contextlib.contextmanager
def node(program: Path, base: Path) -> Iterator[Path]:
    """One root of ours for all fronts in it."""
    base.mkdir(parents=True)
    os.environ["NYDUS_FSCACHE_ROOT"] = str(base / "root")
    try:
        yield base
    finally:
        os.environ.pop("NYDUS_FSCACHE_ROOT")
        end_all(base)
        shutil.rmtree(base, ignore_errors=True)


def ready_ms(program: Path, base: Path) -> float:
    """From the start of the process to its first answer."""
    begin = time.perf_counter()
    with started(program, base):
        return (time.perf_counter() - begin) * 1000


def shared(program: Path, base: Path, built: list[Path], counts: list[int]) -> None:
    with node(program, base / "node"), started(program, base / "node" / "d") as daemon:
        time.sleep(2)
        print(f"  shared, no image: {pss_mib(named(base)):6.1f} MiB")
        times = []
        for number, image in enumerate(built, 1):
            times.append(mount(daemon, image, f"/{number}"))
            use(daemon.point / str(number))
            if number in counts:
                time.sleep(2)
                memory = pss_mib(named(base))
                print(f"  shared, {number:3} images: {memory:6.1f} MiB")
        print(f"  first mount {times[0]:.1f} ms", end="")
        if times[1:]:
            print(f", further {statistics.median(times[1:]):.1f} ms (max {max(times[1:]):.1f})")
        else:
            print()


def dedicated(program: Path, base: Path, built: list[Path], counts: list[int]) -> None:
    with node(program, base / "node") as own, contextlib.ExitStack() as fronts:
        for number, image in enumerate(built, 1):
            place = own / f"d{number}"
            text = own / f"config{number}"
            text.write_text(config(Daemon(place, None), image, f"/{number}"))  # type: ignore[arg-type]
            words = ("--config", str(text), "--bootstrap", str(image / "image.boot"))
            daemon = fronts.enter_context(started(program, place, *words))
            use(daemon.point)
            if number in counts:
                time.sleep(2)
                memory = pss_mib(named(base))
                print(f"  dedicated, {number:3} images: {memory:6.1f} MiB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", default="1,10,100", help="numbers of images")
    parser.add_argument("--rounds", type=int, default=10, help="of ready to serve")
    args = parser.parse_args()
    counts = sorted({int(word) for word in args.images.split(",")})
    base = Path(tempfile.mkdtemp(prefix="nfdrop-", dir="/var/tmp"))
    programs = {"ours": OURS}
    theirs = original_or_none()
    if theirs is not None:
        programs["nydusd"] = theirs
    try:
        built = images(base / "images", counts[-1])
        for name, program in programs.items():
            print(name)
            with node(program, base / "node"):
                times = [ready_ms(program, base / "node" / "d") for _ in range(args.rounds)]
            print(f"  ready: first {times[0]:.0f} ms, then {statistics.median(times[1:]):.0f} ms")
            shared(program, base, built, counts)
            dedicated(program, base, built, counts)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    return 0


def original_or_none() -> Path | None:
    named = os.environ.get("NYDUS_REAL_DAEMON")
    where = subprocess.run(
        [ROOT / "scripts" / "peers", "--dir"], capture_output=True, text=True, check=True
    )
    found = Path(named or f"{where.stdout.strip()}/nydusd")
    return found if os.access(found, os.X_OK) else None


if __name__ == "__main__":
    sys.exit(main())
