#!/usr/bin/env python3
"""Wall time, CPU and peak memory of `nydus-image create`, `check` and `unpack` beside others.

usage: build.py [MB...]     default: 60 400; 0: a tree of 20,000 small files

Each tool packs the same tree of mixed files (a quarter of their bytes
incompressible; nearly all small, most bytes in large ones) once to warm the page
cache and once for the record.  `check` and `unpack` work on our image of the
tree.  The last two lines work on the tree as a tar.gz: to refer to one costs an
inflate, so `gzip -dc` is its measure.  The original is found by NYDUS_REAL_IMAGE
or in PATH.  What is not installed is left out, and said so.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path


def make_tree(root: Path, megabytes: int) -> int:
    """A deterministic tree; bytes in it."""
    rng = random.Random(megabytes)
    words = [rng.randbytes(rng.randint(2, 9)).hex().encode() for _ in range(4000)]
    total = 0
    for i in range(10**6):
        if total >= megabytes << 20:
            return total
        (size,) = rng.choices((900, 3000, 9000, 40000, 200000, 3 << 20), (30, 30, 20, 12, 6, 1))
        text = i % 4 != 0
        data = b" ".join(rng.choices(words, k=size // 11 + 1)) if text else rng.randbytes(size)
        directory = root / f"d{i % 97}"
        directory.mkdir(exist_ok=True)
        (directory / f"f{i}").write_bytes(data)
        total += len(data)
    return total


def make_small_files(root: Path, count: int) -> int:
    """Text of 400 to 4,400 bytes each, 200 in a directory; bytes in them."""
    rng, total = random.Random(count), 0
    for number in range(count):
        directory = root / f"d{number // 200:04}"
        directory.mkdir(exist_ok=True)
        data = b"line %d of some text\n" % number * rng.randint(20, 200)
        (directory / f"file{number:06}.txt").write_bytes(data)
        total += len(data)
    return total


def measure(argv: list[str], out: Path) -> tuple[float, float, int]:
    """(wall seconds, CPU seconds, peak KiB) of the second of two runs."""
    for _ in range(2):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        os.sync()  # of the tree, which our fsync would wait for
        start = time.monotonic()
        pid = os.posix_spawnp(
            argv[0], argv, os.environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)],
        )  # fmt: skip
        _, status, usage = os.wait4(pid, 0)
        wall = time.monotonic() - start
        if status:
            raise SystemExit(f"{argv[0]} failed: {status}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss


def original() -> str:
    """The real nydus-image; where it is not, a name that is nowhere."""
    named = os.environ.get("NYDUS_REAL_IMAGE")
    if named:
        return named
    ours = Path(sys.executable).parent
    path = os.pathsep.join(p for p in os.get_exec_path() if Path(p) != ours)
    return shutil.which("nydus-image", path=path) or "nydus-image: none in PATH"


def main() -> None:
    sizes = [int(a) for a in sys.argv[1:]] or [60, 400]
    for megabytes in sizes:
        with tempfile.TemporaryDirectory() as work:
            tree, out = Path(work, "tree"), Path(work, "out")
            tree.mkdir()
            total = make_tree(tree, megabytes) if megabytes else make_small_files(tree, 20_000)
            layer = Path(work, "layer.tar.gz")
            with tarfile.open(layer, "w:gz", compresslevel=6) as tar:
                tar.add(tree, "")
            places = ["-B", f"{out}/boot", "-D", str(out)]
            rafs = ["create", "-t", "dir-rafs", *places, str(tree)]
            image = Path(work, "image")
            image.mkdir()
            ours = [sys.executable, "-m", "rafs_v6.cli"]
            made = [f"{image}/boot", "-D", str(image)]
            subprocess.run(
                [*ours, "create", "-B", *made, str(tree)], check=True, stdout=subprocess.DEVNULL
            )
            tools = {
                "create": [*ours, *rafs],
                "nydus-image (original)": [original(), *rafs],
                "mkfs.erofs -zlz4": ["mkfs.erofs", "-zlz4", f"{out}/image", str(tree)],
                "tar | zstd -3 -T2": [
                    "sh", "-c", f"tar -C {tree} -c . | zstd -q -3 -T2 -o {out}/tar.zst",
                ],
                "check": [*ours, "check", *made],
                "unpack": [*ours, "unpack", *made, "--output", f"{out}/tar"],
                "create -t targz-ref": [*ours, "create", "-t", "targz-ref", *places, str(layer)],
                "gzip -dc": ["sh", "-c", f"gzip -dc {layer} > /dev/null"],
            }  # fmt: skip
            files = sum(1 for path in tree.rglob("*") if path.is_file())
            print(f"{total >> 20} MB of input in {files} files")
            for name, argv in tools.items():
                binary = "zstd" if "zstd" in argv[-1] else argv[0]
                if shutil.which(binary) is None:
                    print(f"  {name:24} not installed")
                    continue
                wall, cpu, peak = measure(argv, out)
                stored = sum(p.stat().st_size for p in out.iterdir())
                print(
                    f"  {name:24} {wall:6.2f} s  {total / wall / 1e6:6.0f} MB/s  cpu {cpu:6.2f} s"
                    f"  peak {peak >> 10:4} MiB  stored {stored >> 20} MB"
                )


if __name__ == "__main__":
    main()
