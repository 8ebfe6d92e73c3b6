#!/usr/bin/env python3
"""Cost against size: mounts on one node, files of one image, images started at once over one link,
bytes of a blob, blobs in the cache.

    scripts/bench/scale.py [--KIND N,N…] [--json FILE] [--svg FILE] [--work DIR]

Each row names the size, and seconds, CPU seconds and memory of the service; nothing may grow faster
than the size.  ``take-over``: from the service's kill to the answer of a successor that has all
mounts.  Root; everything lies below ``--work`` (a new directory of /var/tmp), and is removed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import cold_kit as kit  # noqa: E402 - found by the path above
import cold_plot  # noqa: E402
from scale_data import of_cached, of_gigabytes, of_starts  # noqa: E402
from scale_kit import Node, Row, make_image  # noqa: E402


def of_mounts(work: Path, count: int) -> Row:
    boot, blobs = make_image(work, 1000)
    points = [work / f"m{number}" for number in range(count)]
    with Node(work) as node:
        last = 0.0

        def mount_all() -> None:
            nonlocal last
            for point in points:
                last = kit.timed(lambda point=point: node.mount(boot, blobs, point))

        cost = node.cost(mount_all)
        status = min(kit.timed(node.daemon.status) for _ in range(3))
        take_over = node.take_over(count)
        (points[-1] / "d00000/f001").read_bytes()
    for point in points:
        point.rmdir()
    return {**cost, "last_s": last, "status_s": status, "take_over_s": take_over}


def of_files(work: Path, files: int) -> Row:
    boot, blobs = make_image(work, files)
    point = work / "m"
    with Node(work) as node:
        cost = node.cost(lambda: node.mount(boot, blobs, point))
        (point / "d00000/f001").read_bytes()
    return {**cost, "bootstrap_bytes_each": boot.stat().st_size / files}


KINDS = {
    "mounts": (of_mounts, [1, 10, 100, 1000], ("seconds", "cpu_s", "take_over_s", "status_s")),
    "files": (of_files, [1000, 10_000, 100_000, 1_000_000], ("seconds", "cpu_s")),
    "starts": (of_starts, [1, 4, 16, 64], ("seconds", "cpu_s")),
    "gigabytes": (of_gigabytes, [1, 4, 16, 64], ("seconds", "cpu_s", "take_over_s")),
    "cached": (of_cached, [100, 1000, 10_000, 100_000], ("ready_s", "status_s", "gc_s")),
}


def _sizes(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    for kind, (_, sizes, _) in KINDS.items():
        parser.add_argument(f"--{kind}", type=_sizes, default=sizes)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="scale-", dir=args.work or "/var/tmp"))
    rows: list[Row] = []
    try:
        for kind, (measure, _, _) in KINDS.items():
            for size in getattr(args, kind):
                row = {"of": kind, "size": size, **measure(work, size)}
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
            {f"{kind}: {name}": [(r["size"], r[name]) for r in rows if r["of"] == kind]
             for kind, (_, _, names) in KINDS.items() for name in names}
        ))  # fmt: skip


if __name__ == "__main__":
    main()
