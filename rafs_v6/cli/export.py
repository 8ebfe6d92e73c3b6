"""``nydus-image export``: an image as a block device that the kernel mounts without a daemon."""

from __future__ import annotations

import argparse
import os
import stat

from rafs_v6.cli._common import add_log, at_least, examples, file_path, progress_line
from rafs_v6.cli._images import (
    add_blobs,
    add_bootstrap,
    bootstrap_path,
    need_blobs,
)
from rafs_v6.tools.blobs import open_image
from rafs_v6.tools.export import export_block
from rafs_v6.writer.blob_file import BlobFile
from rafs_v6.writer.errors import BuildError, UsageError

EXAMPLES = """\
  nydus-image export --block --bootstrap image.boot --blob-dir blobs/ --output image.disk
  mount -t erofs -o loop,ro image.disk /mnt
  nydus-image export --block --verity --bootstrap image.boot --blob-dir blobs/
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "export", help="make a block image that the kernel mounts", **examples(EXAMPLES)
    )
    parser.add_argument("--block", action="store_true", help="as a block image (the only form)")
    add_bootstrap(parser)
    add_blobs(parser)
    # nydus-snapshotter calls it so
    parser.add_argument("--localfs-dir", dest="blob_dir", type=file_path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=at_least(1, 32), default=4, metavar="N", help="1 to 32")
    parser.add_argument(
        "-O", "--output", type=file_path, metavar="FILE", help="default: BOOTSTRAP.disk"
    )
    parser.add_argument(
        "--verity", action="store_true",
        help="append a dm-verity tree, and print the options of veritysetup for it",
    )  # fmt: skip
    add_log(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    if not args.block:
        raise UsageError("export in which form? add --block")
    path = bootstrap_path(args)
    target = args.output or path.with_name(path.name + ".disk")
    with need_blobs(args) as blobs, progress_line("exported") as progress:
        image, named = open_image(path, blobs)
        out = BlobFile(target)
        try:
            if not stat.S_ISREG(os.fstat(out.raw.fileno()).st_mode):
                raise BuildError(f"{target} is not a file: write a file, then copy it there")
            verity = export_block(
                image, named, out.raw.fileno(), verity=args.verity, threads=args.threads,
                progress=progress,
            )  # fmt: skip
            out.publish(target)
        finally:
            out.discard()
    if verity is not None:
        # The line is read by nydus-snapshotter, which takes it to be all of the output.
        print(f"dm-verity options: {verity.options}")
