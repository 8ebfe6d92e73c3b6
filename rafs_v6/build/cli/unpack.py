"""``nydus-image unpack``: an image back to a tar."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import rafs_v6
from rafs_v6.build.blobfile import BlobFile
from rafs_v6.build.errors import BuildError
from rafs_v6.build.unpack import unpack
from rafs_v6.image import Image, directory_reader


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("unpack", help="turn an image back into a tar")
    parser.add_argument("source", type=Path, nargs="?", metavar="BOOTSTRAP")
    parser.add_argument("-B", "--bootstrap", type=Path, help="the same, as older callers say it")
    parser.add_argument("-D", "--blob-dir", type=Path, metavar="DIR")
    parser.add_argument("-b", "--blob", type=Path, metavar="FILE", help="the image's only blob")
    parser.add_argument("--output", type=Path, required=True, metavar="TAR")
    parser.add_argument("-l", "--log-level", help=argparse.SUPPRESS, default=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    path = args.source or args.bootstrap
    if path is None:
        raise BuildError("which bootstrap? give its path")
    out = BlobFile(args.output)
    try:
        left_out = unpack(_open(path, args.blob_dir, args.blob), out.raw)
        out.publish(args.output)
    finally:
        out.discard()
    for name in left_out:
        print(f"left out, no tar can hold a socket: {name!r}", file=sys.stderr)


def _open(path: Path, blob_dir: Path | None, blob: Path | None) -> Image:
    if blob is None:
        return rafs_v6.open(path, blobs=blob_dir)
    bootstrap = rafs_v6.Bootstrap.from_file(path)
    bootstrap.validate()
    if len(bootstrap.blobs) > 1:
        raise BuildError(f"{path} has {len(bootstrap.blobs)} blobs: give --blob-dir, not --blob")
    read = directory_reader(blob.parent)
    # The only blob may lie under any name, so the id says nothing here.
    return Image(
        bootstrap,
        lambda _, off, length: read(blob.name, off, length),
        lambda _: blob.stat().st_size,
    )
