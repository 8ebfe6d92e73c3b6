"""``nydus-image merge``: one bootstrap out of those of the layers."""

from __future__ import annotations

import argparse
from pathlib import Path

from rafs_v6.cli._common import (
    add_builder,
    examples,
    read_prefetch,
    report,
)
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
    parser.add_argument("source", type=Path, nargs="+", metavar="SOURCE")
    parser.add_argument("-B", "--bootstrap", type=Path, required=True, metavar="FILE")
    parser.add_argument("-D", "--blob-dir", type=Path, help=argparse.SUPPRESS)  # nothing is read
    for option in ("--blob-digests", "--original-blob-ids", "--blob-toc-digests"):
        parser.add_argument(option, type=_words, default=(), metavar="A,B,...")
    for option in ("--blob-sizes", "--blob-toc-sizes"):
        parser.add_argument(option, type=_numbers, default=(), metavar="N,M,...")
    add_builder(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    names = LayerNames(
        args.blob_digests, args.original_blob_ids, args.blob_sizes, args.blob_toc_digests,
        args.blob_toc_sizes,
    )  # fmt: skip
    merged = merge(
        args.source, names, args.bootstrap, read_prefetch(args),
        chunk_dict=args.chunk_dict, parent=args.parent_bootstrap,
    )  # fmt: skip
    report(
        args.output_json, bootstrap=args.bootstrap, blobs=merged.blobs,
        compressor=merged.compressor.name.lower(),
    )  # fmt: skip


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in _words(text))
