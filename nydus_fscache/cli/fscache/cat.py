"""``cat``: files of an image, read from its blobs without a mount; every chunk is verified."""

from __future__ import annotations

import argparse
import base64
import json
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from nydus_fscache.cli.fscache.common import add_bootstrap
from nydus_fscache.cli.fscache.mount import add_backend, fetch_config
from nydus_fscache.errors import BadImage, FscacheError, UsageError

if TYPE_CHECKING:
    import rafs_v6
    from nydus_fscache.backend.base import Backend

NAME = "cat"
HELP = "print files of an image, without mounting it"
EXAMPLES = """\
examples:
  nydus-fscache cat image.boot /etc/os-release --blob-dir blobs/
  nydus-fscache cat image.boot /bin/sh --backend backend.json > sh
"""

_PATIENCE_S = 60.0  # for one range of a blob


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="Print regular files of an image one after the other. Symbolic links are "
        "followed inside the image. Chunks that do not match their digest are an error.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_bootstrap(parser)
    parser.add_argument("paths", metavar="PATH", nargs="+")
    add_backend(parser)
    parser.add_argument(
        "--json", action="store_true", help="one object a file: path, size, data (base64)"
    )


def run(args: argparse.Namespace) -> int:
    import rafs_v6  # noqa: PLC0415 - quick --help
    from nydus_fscache.backend.make import make_backend  # noqa: PLC0415
    from nydus_fscache.cli.fscache.image_files import open_bootstrap, resolve  # noqa: PLC0415
    from rafs_v6.format.blob_table import is_inlined_id  # noqa: PLC0415

    bootstrap, inside = open_bootstrap(args.bootstrap)
    given = fetch_config(args)
    config = given.backend if given else None
    if inside and any(is_inlined_id(info.blob_id) for info in bootstrap.blobs):
        # such a blob does not know its own name, and is all that there is to read
        config = {"type": "localfs", "localfs": {"blob_file": str(args.bootstrap.resolve())}}
    if config is None:
        raise UsageError("where are the blobs?", hint="add --blob-dir DIR or --backend FILE")
    inodes = []
    for path in args.paths:
        _, inode = resolve(bootstrap, path, follow=True)
        if not inode.is_reg:
            raise FscacheError(f"{path}: not a regular file", hint="cat prints regular files only")
        inodes.append((path, inode))
    backend = make_backend(config)
    try:
        image = _image(bootstrap, backend)
        for path, inode in inodes:
            try:
                if args.json:
                    _print_json(path, inode.size, image.iter_file(inode))
                    continue
                for chunk in image.iter_file(inode):
                    sys.stdout.buffer.write(chunk)
            except rafs_v6.ImageError as e:
                raise BadImage(
                    f"{path}: {e}", hint="the blob is damaged or another one: pull it again"
                ) from e
    finally:
        backend.close()
    return 0


def _print_json(path: str, size: int, chunks: Iterable[bytes]) -> None:
    """As it comes: a file may be larger than memory."""
    out = sys.stdout.buffer
    sys.stdout.flush()
    out.write(f'{{"path": {json.dumps(path)}, "size": {size}, "data": "'.encode())
    rest = b""
    for chunk in chunks:
        rest += chunk
        whole = len(rest) // 3 * 3
        out.write(base64.b64encode(rest[:whole]))
        rest = rest[whole:]
    out.write(base64.b64encode(rest) + b'"}\n')


def _image(bootstrap: rafs_v6.Bootstrap, backend: Backend) -> rafs_v6.Image:
    import rafs_v6  # noqa: PLC0415 - quick --help

    def read_at(blob_id: str, offset: int, length: int) -> bytes:
        return backend.read(blob_id, offset, length, deadline=time.monotonic() + _PATIENCE_S)

    def blob_size(blob_id: str) -> int:
        return backend.size(blob_id, deadline=time.monotonic() + _PATIENCE_S)

    return rafs_v6.Image(bootstrap, rafs_v6.Blobs(read_at, blob_size))
