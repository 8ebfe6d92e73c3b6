#!/usr/bin/env python3
"""Starts recorded for start_sim.py: which units each wants, in which order.

    scripts/bench/start_record.py --work DIR TREES [NAME…]

TREES: what start_trees.sh made.  DIR gets an image, NAME.rec.json and NAME.flat (the data) each.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import cold_kit as kit  # noqa: E402 - found by the path above

import rafs_v6  # noqa: E402

RUNS = 5  # once its data are here, for the time that it takes


def record(work: Path, name: str, tree: Path) -> str:
    image = work / f"image-{name}"
    if not (image / "boot").exists():
        kit.build(tree, image)
    built = kit.Built(image / "boot", image / "served", image / "served/image.tar.zst", 0)
    run = partial(kit.start, argv=kit.STARTS[name])
    daemon = kit.Daemon(work / name / "root")
    with kit.server(built.blobs, 0, 0) as host:
        daemon.start()
        try:
            daemon.forget_image()
            kit.drop_caches()
            daemon.mount(built, kit.backend(host), "none")
            run(daemon.mountpoint)
            local = min(kit.timed(lambda: run(daemon.mountpoint)) for _ in range(RUNS))
            digest = hashlib.sha256(built.bootstrap.read_bytes()).hexdigest()
            accesses = daemon.client.call("GET", "/v1/traces", digest=digest)["accesses"]
        finally:
            daemon.stop()
    _write_flat(built.bootstrap, tree, work / f"{name}.flat")
    kit.save(
        work / f"{name}.rec.json",
        {"boot": str(built.bootstrap), "blobs": str(built.blobs), "local_s": local,
         "argv": kit.STARTS[name], "units": [access["unit"] for access in accesses]},
    )  # fmt: skip
    return f"{name}: {len(accesses)} units, {local:.3f} s"


def _write_flat(boot: Path, tree: Path, target: Path) -> None:
    """The uncompressed blob: what a cache file holds when all is here."""
    bootstrap = rafs_v6.Bootstrap.from_file(boot)
    with target.open("wb") as flat:
        for path, inode in bootstrap.walk():
            if inode.is_reg and inode.size:
                with Path(os.fsdecode(os.fsencode(tree) + path)).open("rb") as source:
                    for ref in bootstrap.chunks(inode):
                        flat.seek(ref.flat_off)
                        flat.write(source.read(ref.size))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("trees", type=Path)
    parser.add_argument("names", nargs="*", default=sorted(kit.STARTS))
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        print(record(work, name, args.trees / name), flush=True)


if __name__ == "__main__":
    main()
