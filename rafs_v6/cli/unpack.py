"""``nydus-image unpack``: an image back to a tar."""

from __future__ import annotations

import argparse
from pathlib import Path

from rafs_v6.cli._common import add_log, at_least, examples, file_path, progress_line
from rafs_v6.cli._images import add_blobs, add_bootstrap, bootstrap_path, open_blobs
from rafs_v6.errors import shown
from rafs_v6.reader.blobs import Blobs
from rafs_v6.reader.image import Image
from rafs_v6.tools.blobs import open_image
from rafs_v6.tools.unpack import unpack
from rafs_v6.writer.blob_file import BlobFile
from rafs_v6.writer.errors import BuildError

EXAMPLES = """\
  nydus-image unpack image.boot --blob-dir blobs/ --output image.tar
  nydus-image unpack image.boot --blob blobs/3f… --output - | tar -t
  nydus-image unpack image.boot --output image.tar --backend-type registry \\
      --backend-config '{"host": "registry.example", "repo": "team/app"}'
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "unpack", help="turn an image back into a tar", **examples(EXAMPLES)
    )
    add_bootstrap(parser)
    add_blobs(parser, single=True)
    parser.add_argument(
        "--output", type=file_path, required=True, metavar="TAR", help="- for standard output"
    )
    parser.add_argument("--threads", type=at_least(0), default=0, help="0: one a processor")
    add_log(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    target = Path("/dev/stdout") if str(args.output) == "-" else args.output
    with open_blobs(args) as blobs, progress_line("unpacked") as progress:
        image, named = open_image(bootstrap_path(args), blobs or _no_blobs())
        _check_single(args, image)
        out = BlobFile(target)
        try:
            left_out = unpack(
                image, named, lambda data: out.write(data, hashed=False),
                threads=args.threads, progress=progress,
            )  # fmt: skip
            out.publish(target)
        finally:
            out.discard()
    for name in left_out:
        args.log.warn(f"left out, a tar cannot hold a socket: {shown(name)}")


def _check_single(args: argparse.Namespace, image: Image) -> None:
    own = bootstrap_path(args).name
    ids = {i for b in image.bootstrap.blobs for i in (b.blob_id, b.meta_blob_id)} - {own}
    if args.blob is not None and len(ids) > 1:
        raise BuildError(f"the image has {len(ids)} blobs: give --blob-dir, not --blob")


def _no_blobs() -> Blobs:
    """For an image that holds no data, or all of them beside its bootstrap."""

    def missing(blob_id: str, *_: int) -> int:
        raise BuildError(f"where is blob {blob_id}? give --blob-dir, --blob, or a backend")

    return Blobs(missing, missing)  # type: ignore[arg-type]
