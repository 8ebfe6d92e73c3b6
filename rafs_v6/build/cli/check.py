"""``nydus-image check``: the bootstrap as a whole and, with ``--blob-dir``, every chunk."""

from __future__ import annotations

import argparse
from pathlib import Path

import rafs_v6
from rafs_v6.build.cli.output import add_common, report
from rafs_v6.build.errors import BuildError


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("check", help="validate an image")
    parser.add_argument("source", type=Path, nargs="?", metavar="BOOTSTRAP")
    parser.add_argument("-B", "--bootstrap", type=Path, help="the same, as older callers say it")
    parser.add_argument("-D", "--blob-dir", type=Path, metavar="DIR")
    parser.add_argument("-v", "--verbose", action="store_true")
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    path = args.source or args.bootstrap
    if path is None:
        raise BuildError("which bootstrap? give its path")
    image = rafs_v6.open(path, blobs=args.blob_dir)
    for name, inode in image.walk():
        if args.verbose:
            print(f"{inode.mode:06o} {inode.size:12} {name.decode(errors='backslashreplace')}")
        if args.blob_dir is not None and inode.is_reg:
            try:
                for _ in image.iter_file(inode):
                    pass
            except rafs_v6.ImageError as error:
                raise BuildError(f"{name.decode(errors='backslashreplace')}: {error}") from error
    report(
        args.output_json, bootstrap=path, blobs=[b.blob_id for b in image.bootstrap.blobs],
        compressor=",".join(sorted({b.compressor.name.lower() for b in image.bootstrap.blobs})),
    )  # fmt: skip
