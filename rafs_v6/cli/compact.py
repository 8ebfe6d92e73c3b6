"""``nydus-image compact``: leave out chunks that no file uses, put small blobs together."""

from __future__ import annotations

import argparse

from rafs_v6.cli._common import (
    add_common,
    at_least,
    dictionary,
    examples,
    file_path,
    report,
    say,
)
from rafs_v6.cli._images import add_blobs, add_bootstrap, bootstrap_path, need_blobs
from rafs_v6.tools.compact import CompactOptions, compact
from rafs_v6.tools.rewrite import Rewrite
from rafs_v6.writer.errors import UsageError
from rafs_v6.writer.load import load_blobs, open_bootstrap

EXAMPLES = """\
  nydus-image compact --bootstrap image.boot --blob-dir blobs/ --min-used-ratio 50
  nydus-image compact --bootstrap image.boot --blob-dir new/ --layers-to-compact 1 \\
      --backend-type registry --backend-config registry.json
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    defaults = CompactOptions()
    parser = commands.add_parser(
        "compact", help="drop unused chunks, merge small blobs",
        description="New blobs go to --blob-dir, which also has the old ones unless a backend is"
        " given. Old blobs are left where they are.",
        **examples(EXAMPLES),
    )  # fmt: skip
    add_bootstrap(parser)
    add_blobs(parser)
    parser.add_argument(
        "--min-used-ratio", type=at_least(0), default=defaults.min_used_ratio,
        metavar="PERCENT",
        help="a blob of which less is used is written anew (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--compact-blob-size", type=at_least(0), default=defaults.blob_size, metavar="BYTES",
        help="smaller ones may be merged (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--max-compact-size", type=at_least(0), default=defaults.max_size, metavar="BYTES",
        help="of a merged blob (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--layers-to-compact", type=at_least(0), default=defaults.layers, metavar="N",
        help="merge when more blobs than this are used (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--chunk-dict", type=dictionary, metavar="[bootstrap=]FILE", help="its blobs stay"
    )
    parser.add_argument(
        "-O",
        "--output-bootstrap",
        type=file_path,
        metavar="FILE",
        help="default: BOOTSTRAP.compact",
    )
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    path = bootstrap_path(args)
    if args.blob_dir is None or not args.blob_dir.is_dir():
        raise UsageError("where do new blobs go? give --blob-dir, a directory")
    keep = set()
    if args.chunk_dict is not None:
        known = open_bootstrap(args.chunk_dict, tables_only=True)
        keep = {b.name for b in load_blobs(known, args.chunk_dict)}
    options = CompactOptions(
        args.min_used_ratio, args.compact_blob_size, args.max_compact_size, args.layers_to_compact
    )
    target = args.output_bootstrap or path.with_name(path.name + ".compact")
    with need_blobs(args) as blobs:
        rewrite = Rewrite.open(path, blobs)
        done = compact(rewrite, options, target, args.blob_dir, keep)
    for blob in done.replaced:
        say(args, f"no longer used: {blob}")
    report(
        args, bootstrap=target, blobs=done.blobs,
        compressor=rewrite.defaults.compressor.name.lower(),
        extra={"new_blobs": done.written, "unused_blobs": done.replaced},
    )  # fmt: skip
