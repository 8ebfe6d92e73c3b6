#!/usr/bin/env python3
"""Cold starts over a throttled server, against the physical limit and a full pull.

    scripts/bench/cold.py [--quick] [--rounds N] [--work DIR] [--json FILE] [--svg FILE]
                          [--only trees|startup|random|warm|starts] [--starts DIR]

Trees S (74 MB) and L (413 MB) are parts of this machine's /usr, zstd, 1 MiB chunks.
Latency counts per request, bandwidth for all connections together.  The limit of a
run is L + C/B, with C the stored bytes that the workload needs.  Times are those of
the mount call and the workload; the daemon runs already, as on a node.

The original nydusd runs beside ours, in turn, when ``NYDUS_REAL_DAEMON`` names one or PATH has
one; its start is part of its time, as it starts one process for each image.  ``--starts DIR``: a
directory of root trees (``start_trees.sh`` makes them), each started as ``cold_kit.STARTS`` says.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import cold_kit as kit  # noqa: E402 - found by the path above
import cold_plot  # noqa: E402
from cold_peer import Nydusd, find_nydusd  # noqa: E402

_GET = (
    "import urllib.request as u, shutil, sys; "
    "shutil.copyfileobj(u.urlopen(sys.argv[1]), sys.stdout.buffer, 1 << 20)"
)
RANDOM_READS = 300
RANDOM_SIZE = 268 << 20
WARM_ROUNDS = 5


@dataclass
class Row:
    run: str
    limit_s: float
    ready_s: float
    seconds: float
    ratio: float
    fetched_mb: float
    needed_mb: float
    requests: int
    cpu_s: float
    peak_mb: float
    peer_s: float = 0.0  # 0: it did not run
    peer_mb: float = 0.0
    peer_requests: int = 0
    peer_cpu_s: float = 0.0

    @property
    def to_peer(self) -> float:
        return self.seconds / self.peer_s if self.peer_s else 0.0


class Bench:
    def __init__(self, work: Path, rounds: int) -> None:
        self.work = work
        self.rounds = rounds
        self.rows: list[Row] = []
        self.daemon = kit.Daemon(work / "root")
        self.images: dict[str, kit.Built] = {}
        self.startup_needs = 0
        program = find_nydusd()
        self.peer = Nydusd(program, work / "peer") if program else None
        self.noise: list[float] = []

    def image(self, name: str, megabytes: int) -> kit.Built:
        if name not in self.images:
            tree = self.work / f"tree-{name}"
            if not tree.exists():
                kit.make_tree(tree, megabytes)
            self.images[name] = kit.build(tree, self.work / f"image-{name}")
        return self.images[name]

    def cold(
        self, name: str, built: kit.Built, net: tuple[float, float], prefetch: str, work: Any,
        needed: int | None = None, *, forget: bool = False, peer: str = "",
    ) -> Row:  # fmt: skip
        """Runs with nothing in any cache; the one whose time is the median.

        ``needed``: None for what the trace says.  ``forget``: what the image left at its last
        mount, too (its trace, the metadata of its blobs).  ``peer``: how the original runs beside,
        "none" or "all".
        """
        rows, peers = [], []
        for _ in range(self.rounds):
            self.noise.append(kit.timed(kit.spin))
            if forget:
                self.daemon.forget_image()
            rows.append(self._cold(name, built, net, prefetch, work, needed))
            if peer and self.peer is not None:
                peers.append(self._peer(self.peer, built, net, peer, work))
        row = sorted(rows, key=lambda row: row.seconds)[len(rows) // 2]
        if peers:
            median = sorted(peers)[len(peers) // 2]
            row.peer_s, row.peer_mb, row.peer_requests, row.peer_cpu_s = median
        self.add(row)
        return row

    def _cold(
        self, name: str, built: kit.Built, net: tuple[float, float], prefetch: str, work: Any,
        needed: int | None,
    ) -> Row:  # fmt: skip
        latency, mbps = net
        daemon = self.daemon
        with kit.server(built.blobs, latency, mbps) as host:
            daemon.start()
            try:
                kit.drop_caches()
                before = daemon.usage()[0]
                mount = kit.timed(lambda: daemon.mount(built, kit.backend(host), prefetch))
                seconds = mount + kit.timed(lambda: work(daemon.mountpoint))
                cpu, peak = daemon.usage()
                blobs = daemon.status()["blobs"]
                if needed is None:
                    needed = daemon.needed(built)
                    self.startup_needs = needed
            finally:
                daemon.stop()
        limit = latency / 1000 + needed / (mbps * 1e6)
        return Row(
            f"{name} {latency:.0f}/{mbps:.0f}", limit, mount, seconds, seconds / limit,
            sum(b["fetched"] for b in blobs) / 1e6, needed / 1e6,
            sum(b["requests"] for b in blobs), cpu - before, peak / 1e6,
        )  # fmt: skip

    def _peer(
        self, peer: Nydusd, built: kit.Built, net: tuple[float, float], prefetch: str, work: Any
    ) -> tuple[float, float, int, float]:
        """(seconds, MB, requests, CPU seconds) of the original."""
        stats = self.work / "stats"
        with kit.server(built.blobs, *net, stats=stats) as host:
            try:
                kit.drop_caches()
                config = kit.backend(host)
                seconds = kit.timed(
                    lambda: peer.mount(built, config, prefetch_all=prefetch == "all")
                )
                seconds += kit.timed(lambda: work(peer.mountpoint))
                cpu = peer.usage()[0]
            finally:
                peer.stop()
        requests, sent = map(int, stats.read_text().split())
        return seconds, sent / 1e6, requests, cpu

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(
            f"{row.run:42} limit {row.limit_s:6.2f}  ready {row.ready_s:4.2f}"
            f"  took {row.seconds:6.2f} s  x{row.ratio:5.2f}"
            f"  fetched {row.fetched_mb:6.1f} MB of {row.needed_mb:6.1f}"
            f"  {row.requests:4} requests  cpu {row.cpu_s:5.2f} s  peak {row.peak_mb:4.0f} MB"
            + (f"  nydusd {row.peer_s:6.2f} s {row.peer_mb:6.1f} MB {row.peer_requests:4} requests"
               f"  cpu {row.peer_cpu_s:5.2f} s  ratio {row.to_peer:4.2f}" if row.peer_s else ""),
            flush=True,
        )

    def pull(self, name: str, built: kit.Built, net: tuple[float, float], needed: int) -> None:
        """What a full pull and unpack costs before the workload can start."""
        latency, mbps = net
        target = self.work / "unpacked"
        with kit.server(built.blobs, latency, mbps) as host:
            target.mkdir()
            kit.drop_caches()
            url = f"http://{host}/{built.tar.name}"
            shell = f"{sys.executable} -c '{_GET}' {url} | zstd -dcq | tar -C {target} -x"
            seconds = kit.timed(lambda: subprocess.run(["sh", "-c", shell], check=True))
            shutil.rmtree(target)
        limit = latency / 1000 + needed / (mbps * 1e6)
        size = built.tar.stat().st_size / 1e6
        self.add(
            Row(f"{name} {latency:.0f}/{mbps:.0f}", limit, seconds, seconds, seconds / limit, size,
                needed / 1e6, 1, 0, 0)
        )  # fmt: skip

    # -- workloads -------------------------------------------------------------------------------

    def trees(self, name: str, megabytes: int, nets: list[tuple[float, float]]) -> None:
        built = self.image(name, megabytes)
        for net in nets:
            for prefetch in ("none", "all"):
                self.cold(f"tree {name}, prefetch {prefetch}", built, net, prefetch, kit.walk,
                          built.stored, forget=True, peer=prefetch)  # fmt: skip
            self.pull(f"tree {name}, pull and unpack", built, net, built.stored)
        self.floor(f"tree {name}", built, kit.walk)

    @contextlib.contextmanager
    def complete(self, built: kit.Built) -> Iterator[Path]:
        """The image with all of its data here, mounted by us; yields a local EROFS mount of it."""
        local = self.work / "local"
        local.mkdir(exist_ok=True)
        with kit.server(built.blobs, 0, 0) as host:
            self.daemon.start()
            try:
                self.daemon.mount(built, kit.backend(host), "none")
                kit.walk(self.daemon.mountpoint)
                blobs = list((self.daemon.root / "cache").glob("*.blob.data"))
                kit.mount_local(built.bootstrap, blobs, local)
                try:
                    yield local
                finally:
                    subprocess.run(["umount", local], check=True)
            finally:
                self.daemon.stop()

    def floor(self, name: str, built: kit.Built, work: Any) -> None:
        """The workload alone, from a local EROFS mount and cold page cache."""
        with self.complete(built) as local:
            kit.drop_caches()
            seconds = kit.timed(lambda: work(local))
        self.add(Row(f"{name}, all local", seconds, 0, seconds, 1, 0, 0, 0, 0, 0))

    def startups(self, name: str, megabytes: int, nets: list[tuple[float, float]]) -> None:
        built = self.image(name, megabytes)
        self.floor("startup", built, kit.startup)
        for net in nets:
            self.cold(
                "startup, no trace", built, net, "none", kit.startup, forget=True, peer="none"
            )
            needs = self.startup_needs
            self.cold("startup, trace", built, net, "trace", kit.startup, needs)
            self.cold("startup, prefetch all", built, net, "all", kit.startup, needs, peer="all")
            self.pull("startup, pull and unpack", built, net, needs)

    def starts(self, trees: Path, nets: list[tuple[float, float]]) -> None:
        """Programs that nobody has started before, each from an image of its own."""
        for name, argv in kit.STARTS.items():
            tree = trees / name
            if not tree.is_dir():
                print(f"{name}: no tree in {trees}")
                continue
            out = self.work / f"image-start-{name}"
            built = kit.build(tree, out)
            for net in nets:
                work = partial(kit.start, argv=argv)
                self.cold(f"start {name}", built, net, "none", work, forget=True, peer="none")

    def random_reads(self, net: tuple[float, float]) -> None:
        tree = self.work / "tree-random"
        if not tree.exists():
            tree.mkdir()
            words = random.Random(1)
            with (tree / "file").open("wb") as f:
                for _ in range(RANDOM_SIZE >> 16):
                    f.write(words.randbytes(1 << 14) + bytes(words.randbytes(64)) * 768)
        built = kit.build(tree, self.work / "image-random", 1 << 16)
        places = random.Random(2).sample(range(RANDOM_SIZE // 4096), RANDOM_READS)

        def work(root: Path) -> None:
            fd = os.open(root / "file", os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            for place in places:
                os.pread(fd, 4096, place * 4096)
            os.close(fd)

        self.cold(f"{RANDOM_READS} random 4 KiB reads", built, net, "none", work, forget=True)

    def warm(self, name: str, megabytes: int) -> None:
        """The whole tree again after drop_caches, beside the same image as a local EROFS mount."""
        ours: list[float] = []
        theirs: list[float] = []
        with self.complete(self.image(name, megabytes)) as local:
            for _ in range(WARM_ROUNDS):
                for seconds, root in ((ours, self.daemon.mountpoint), (theirs, local)):
                    kit.drop_caches()
                    seconds.append(kit.timed(lambda root=root: kit.walk(root)))
        here, there = statistics.median(ours), statistics.median(theirs)
        self.add(Row(f"tree {name}, warm, limit: local EROFS", there, 0, here, here / there,
                     0, 0, 0, 0, 0))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="tree S and 20/100 only")
    parser.add_argument("--rounds", type=int, default=1, help="the median of so many runs")
    parser.add_argument("--work", type=Path, help="keep trees and images here for the next time")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--only", choices=("trees", "startup", "random", "warm", "starts"))
    parser.add_argument("--starts", type=Path, help="root trees of programs, see start_trees.sh")
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="cold-", dir="/var/tmp"))
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work.resolve(), args.rounds)
    tree = ("S", 74) if args.quick else ("L", 413)
    nets = [(20.0, 100.0)] if args.quick else [(20.0, 100.0), (5.0, 100.0), (20.0, 20.0)]
    try:
        if args.only in (None, "trees"):
            if not args.quick:
                bench.trees("S", 74, nets[:1])
            bench.trees(*tree, nets[:1])
        if args.only in (None, "startup"):
            bench.startups(*tree, nets)
        if args.only in (None, "random"):
            bench.random_reads((20.0, 100.0))
        if args.only in (None, "warm"):
            bench.warm(*tree)
        if args.starts and args.only in (None, "starts"):
            bench.starts(args.starts, nets)
    finally:
        bench.daemon.stop()
        if args.work is None:
            shutil.rmtree(work, ignore_errors=True)
    if bench.noise:
        low, high = min(bench.noise), max(bench.noise)
        print(f"noise: the same work took {low:.3f} to {high:.3f} s between the runs")
    if args.json:
        kit.save(args.json, [asdict(row) for row in bench.rows])
    if args.svg:
        args.svg.write_text(cold_plot.bars([(r.run, r.ratio) for r in bench.rows]))


if __name__ == "__main__":
    main()
