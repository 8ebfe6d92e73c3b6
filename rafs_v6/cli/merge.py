"""``nydus-image merge``: one bootstrap out of those of the layers."""

from __future__ import annotations

import argparse

from rafs_v6._writer import lib
from rafs_v6.cli._common import (
    add_builder,
    check_config,
    examples,
    file_path,
    new_bootstrap,
    read_prefetch,
    report,
)
from rafs_v6.writer.errors import UnlikeLayers
from rafs_v6.writer.merge import LayerNames, merge

_EXAMPLES = """\
  nydus-image merge --bootstrap image.boot blobs/3f… blobs/9a…
  nydus-image merge --bootstrap image.boot --blob-digests 3f…,9a… low.boot high.boot
  nydus-image merge --bootstrap image.boot --parent-bootstrap base.boot blobs/9a…
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "merge", help="merge layers, lowest first, into one image", **examples(_EXAMPLES)
    )
    parser.add_argument("source", type=file_path, nargs="+", metavar="SOURCE")
    parser.add_argument("-B", "--bootstrap", type=file_path, metavar="FILE")
    parser.add_argument(
        "-D", "--blob-dir", type=file_path, metavar="DIR",
        help="without --bootstrap, the image's goes here, named by its sha256",
    )  # fmt: skip
    for option in ("--blob-digests", "--original-blob-ids", "--blob-toc-digests"):
        parser.add_argument(option, type=_words, default=(), metavar="A,B,...")
    for option in ("--blob-sizes", "--blob-toc-sizes"):
        parser.add_argument(option, type=_numbers, default=(), metavar="N,M,...")
    add_builder(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    lib.rafs_build_map_columns()
    names = LayerNames(
        args.blob_digests, args.original_blob_ids, args.blob_sizes, args.blob_toc_digests,
        args.blob_toc_sizes,
    )  # fmt: skip
    check_config(args)
    try:
        merged = merge(
            args.source, names, new_bootstrap(args), read_prefetch(args),
            chunk_dict=args.chunk_dict, parent=args.parent_bootstrap,
        )  # fmt: skip
    except UnlikeLayers as error:
        error.exit_code = 2  # converters look for it, and convert such layers again
        raise
    report(
        args, bootstrap=merged.bootstrap, blobs=merged.blobs,
        compressor=merged.compressor.name.lower(),
    )  # fmt: skip


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in _words(text))
