"""``nydus-image inspect -R``: one question about a bootstrap, answered in JSON (interface 7.2)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import rafs_v6
from rafs_v6.build.errors import BuildError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("inspect", help="ask a bootstrap: stats, blobs or prefetch")
    parser.add_argument("source", type=Path, nargs="?", metavar="BOOTSTRAP")
    parser.add_argument("-B", "--bootstrap", type=Path, help="the same, as older callers say it")
    parser.add_argument("-R", "--request", choices=tuple(_ANSWERS), required=True)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    path = args.source or args.bootstrap
    if path is None:
        raise BuildError("which bootstrap? give its path")
    print(json.dumps(_ANSWERS[args.request](rafs_v6.open(path).bootstrap)))


def _stats(boot: rafs_v6.Bootstrap) -> object:
    return {"inodes_count": boot.tables.super_block.inos}


def _blobs(boot: rafs_v6.Bootstrap) -> object:
    return [
        {
            "blob_id": blob.blob_id,
            "readahead_offset": 0,
            "readahead_size": 0,
            "decompressed_size": blob.uncompressed_size,
            "compressed_size": blob.compressed_size,
        }
        for blob in boot.blobs
    ]


def _prefetch(boot: rafs_v6.Bootstrap) -> object:
    names = {inode.nid: path for path, inode in boot.walk()}
    return [
        {"inode": nid, "path": names.get(nid, b"").decode(errors="backslashreplace")}
        for nid in boot.prefetch_nids
    ]


_ANSWERS = {"stats": _stats, "blobs": _blobs, "prefetch": _prefetch}
