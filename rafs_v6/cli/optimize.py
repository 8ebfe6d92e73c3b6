"""``nydus-image optimize``: what a start reads, together in a blob that is fetched first."""

from __future__ import annotations

import argparse

from rafs_v6.cli._common import add_common, examples, file_path, report, say
from rafs_v6.cli._images import add_blobs, add_bootstrap, bootstrap_path, need_blobs
from rafs_v6.tools.optimize import optimize
from rafs_v6.tools.rewrite import Rewrite
from rafs_v6.writer.errors import UsageError

EXAMPLES = """\
  nydus-image optimize --bootstrap image.boot --blob-dir blobs/ --prefetch-files started.txt
  nydus-image optimize -B image.boot -p started.txt --output-blob-dir new/ \\
      --backend-type registry --backend-config registry.json
"""
_LIST_MAX = 64 << 20


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "optimize", help="put the data of chosen files into a blob of their own",
        **examples(EXAMPLES),
    )  # fmt: skip
    add_bootstrap(parser)
    add_blobs(parser)
    # The original takes it, and writes its new blob elsewhere as well.
    parser.add_argument("-b", "--blob", dest="ignored", type=file_path, help=argparse.SUPPRESS)
    parser.add_argument(
        "-p", "--prefetch-files", type=file_path, required=True, metavar="FILE",
        help="absolute paths in the image, one a line, in the order in which they are needed",
    )  # fmt: skip
    parser.add_argument(
        "--output-blob-dir",
        type=file_path,
        metavar="DIR",
        help="for the new blob; default: --blob-dir",
    )
    parser.add_argument(
        "-O", "--output-bootstrap", type=file_path, metavar="FILE",
        help="default: BOOTSTRAP.optimized",
    )  # fmt: skip
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    path = bootstrap_path(args)
    directory = args.output_blob_dir or args.blob_dir
    if directory is None or not directory.is_dir():
        raise UsageError("where does the new blob go? give --output-blob-dir, a directory")
    with args.prefetch_files.open("rb") as f:
        paths = [line.strip() for line in f.read(_LIST_MAX).splitlines()]
    target = args.output_bootstrap or path.with_name(path.name + ".optimized")
    with need_blobs(args) as blobs:
        rewrite = Rewrite.open(path, blobs)
        done = optimize(rewrite, paths, target, directory)
    say(args, f"prefetch blob: {done.prefetch_blob}, of {done.files} files")
    report(
        args, bootstrap=target, blobs=done.blobs,
        compressor=rewrite.defaults.compressor.name.lower(),
        extra={"prefetch_blob": done.prefetch_blob},
    )  # fmt: skip
