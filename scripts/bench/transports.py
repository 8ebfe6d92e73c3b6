#!/usr/bin/env python3
"""The transports side by side on this machine: one image that is wholly cached, walked and read
cold and hot, beside the kernel's EROFS on local files.

    sudo scripts/bench/transports.py BOOTSTRAP BLOB_DIR [--rounds N] [--work DIR]

Cold: nothing of the mounts is in the page cache, the cache files are.  Rounds alternate between
the transports, and the least of each is shown, so that a loaded machine misleads less.  Ratios are
to the kernel's EROFS over the same cache files ("local").  The original nydusd is beside them, its
blobs cached too, when NYDUS_REAL_DAEMON names one.  "service": CPU seconds of the daemon over all
rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import cold_kit  # noqa: E402 - found by the path above
from cold_peer import Nydusd, find_nydusd  # noqa: E402

import rafs_v6  # noqa: E402

CLI = [sys.executable, "-m", "nydus_fscache"]
OURS = ("fanotify", "fuse-file", "fuse-loop", "fuse-tree")
LOCAL, PEER = "local", "nydusd"


class Bench:
    def __init__(self, work: Path) -> None:
        self.work = work
        program = find_nydusd()
        self.peer = Nydusd(program, work / "peer") if program else None

    @property
    def ways(self) -> tuple[str, ...]:
        return (*OURS, LOCAL, *((PEER,) if self.peer else ()))

    def root(self, way: str) -> Path:
        return self.work / way

    def run(self, way: str, command: str, *words: str | Path) -> str:
        done = subprocess.run(
            [*CLI, command, "--root", self.root(way), *words],
            check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        return done.stdout

    def mount(self, way: str, boot: Path, blobs: Path) -> Path:
        at = self.work / f"{way}-mount"
        at.mkdir()
        if way == LOCAL:
            cache = self.root(OURS[0]) / "cache"
            names = [blob.blob_id for blob in rafs_v6.Bootstrap.from_file(boot).blobs]
            cold_kit.mount_local(boot, [cache / f"{name}.blob.data" for name in names], at)
            return at
        if way == PEER:
            assert self.peer is not None
            config = {"type": "localfs", "localfs": {"dir": str(blobs)}}
            self.peer.mount(cold_kit.Built(boot, blobs, blobs, 0), config, prefetch_all=True)
            read(self.peer.mountpoint)
            return self.peer.mountpoint
        words = ("--transport", way, "--prefetch", "all")
        self.run(way, "mount", boot, at, "--blob-dir", blobs, *words)
        read(at)
        deadline = time.monotonic() + 300
        while not all(blob["complete"] for blob in self.status(way)["blobs"]):
            assert time.monotonic() < deadline, "the blobs do not become complete"
            time.sleep(0.1)
        return at

    def end(self, way: str, at: Path) -> None:
        """A namespace that somebody else made since may have the mount still."""
        if way == PEER:
            assert self.peer is not None
            self.peer.stop()
            return
        if way == LOCAL:
            subprocess.run(["umount", at], check=True)
            return
        self.run(way, "umount", at)
        with contextlib.suppress(subprocess.CalledProcessError):
            self.run(way, "stop")

    def status(self, way: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.run(way, "status", "--json"))
        return document

    def cpu(self, way: str) -> float:
        if way in (LOCAL, PEER):
            return self.peer.usage()[0] if way == PEER and self.peer else 0.0
        pid = self.status(way)["pid"]
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def make_cold(self, way: str) -> None:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
        at = {LOCAL: self.root(OURS[0]), PEER: self.work / "peer"}.get(way, self.root(way))
        for directory in (at / "cache", at / "images"):
            for path in directory.iterdir() if directory.is_dir() else ():
                if path.is_file():
                    path.read_bytes()


def walk(root: Path) -> None:
    for top, directories, names in os.walk(root):
        for name in (*directories, *names):
            os.lstat(os.path.join(top, name))


def read(root: Path) -> None:
    for top, _, names in os.walk(root):
        for name in names:
            path = os.path.join(top, name)
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "rb", buffering=0) as f:
                    while f.read(1 << 20):
                        pass


def took_ms(work: Callable[[Path], None], at: Path) -> float:
    start = time.perf_counter()
    work(at)
    return (time.perf_counter() - start) * 1000


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bootstrap", type=Path)
    parser.add_argument("blobs", type=Path)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--work", type=Path, default=Path("/var/tmp"))
    args = parser.parse_args()
    columns = ("walk", "cold read", "hot walk", "hot read")
    with tempfile.TemporaryDirectory(dir=args.work, ignore_cleanup_errors=True) as work:
        bench = Bench(Path(work))
        mounts: dict[str, Path] = {}
        try:
            for way in bench.ways:
                mounts[way] = bench.mount(way, args.bootstrap, args.blobs)
            before = {way: bench.cpu(way) for way in mounts}
            least = {way: [float("inf")] * 4 for way in mounts}
            for _ in range(args.rounds):
                for way, at in mounts.items():
                    bench.make_cold(way)
                    times = [took_ms(work, at) for work in (walk, read, walk, read)]
                    least[way] = [min(a, b) for a, b in zip(least[way], times, strict=True)]
            print(f"{'ms':10}", *(f"{c:>16}" for c in columns), f"{'service':>8}")
            floor = least[LOCAL]
            for way, times in least.items():
                pairs = zip(times, floor, strict=True)
                cells = [f"{f'{t:.1f} ({t / f:.2f})':>16}" for t, f in pairs]
                print(f"{way:10}", *cells, f"{bench.cpu(way) - before[way]:8.2f}")
        finally:
            for way, at in reversed(mounts.items()):
                bench.end(way, at)
    return 0


if __name__ == "__main__":
    sys.exit(main())
