"""``nydus-image diff``: what changed between two images, and how much of it must be fetched."""

from __future__ import annotations

import argparse

from rafs_v6.cli._common import add_common, examples, file_path, say, write_json
from rafs_v6.cli._images import add_blobs, open_blobs
from rafs_v6.errors import shown
from rafs_v6.reader.image import Image
from rafs_v6.tools.blobs import load_bootstrap, open_image
from rafs_v6.tools.diff import Difference, diff
from rafs_v6.validate import validate

EXAMPLES = """\
  nydus-image diff old.boot new.boot
  nydus-image diff old.boot new.boot --output-json - | jq .fetch.bytes
  nydus-image diff old.boot new.boot --blob-dir blobs/     (batch and zran images)
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "diff", help="compare two images",
        description="What changed from A to B, and how many compressed bytes a node that has all of"
        " A must fetch to have all of B. Times and owners count as changes too.",
        **examples(EXAMPLES),
    )  # fmt: skip
    parser.add_argument("before", type=file_path, metavar="A")
    parser.add_argument("after", type=file_path, metavar="B")
    add_blobs(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    before = load_bootstrap(args.before)
    validate(before)
    with open_blobs(args) as blobs:
        if blobs is None:
            after = Image(load_bootstrap(args.after))
            validate(after.bootstrap)
        else:
            after, _ = open_image(args.after, blobs)
        found = diff(Image(before), after, with_maps=blobs is not None)
    for sign, paths in (("-", found.removed), ("+", found.added), ("?", found.unsure)):
        for path in paths:
            say(args, f"{sign} {shown(path)}")
    for change in found.changed:
        what = ", ".join(
            name if name == "data" else f"{name} {old} -> {new}"
            for name, (old, new) in change.attributes.items()
        )
        say(args, f"~ {shown(change.path)}: {what}")
    fetch = found.fetch
    size = "unknown (give --blob-dir or a backend)"
    if fetch.new_bytes is not None:
        size = f"{fetch.new_bytes} of {fetch.all_bytes or 'unknown'} bytes"
    say(args, f"to fetch: {fetch.new_chunks} of {fetch.chunks} chunks, {size}")
    if args.output_json is not None:
        write_json(args.output_json, _document(args, found))


def _document(args: argparse.Namespace, found: Difference) -> dict[str, object]:
    fetch = found.fetch
    return {
        "before": str(args.before),
        "after": str(args.after),
        "added": [shown(p) for p in found.added],
        "removed": [shown(p) for p in found.removed],
        "changed": [
            {
                "path": shown(c.path),
                "attributes": {k: {"before": a, "after": b} for k, (a, b) in c.attributes.items()},
            }
            for c in found.changed
        ],
        "unsure": [shown(p) for p in found.unsure],
        "fetch": {
            "bytes": fetch.new_bytes,
            "chunks": fetch.new_chunks,
            "bytes_of_all": fetch.all_bytes,
            "chunks_of_all": fetch.chunks,
        },
    }
