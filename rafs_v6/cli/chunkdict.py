"""``nydus-image chunkdict generate``: a dictionary for ``create --chunk-dict``."""

from __future__ import annotations

import argparse

from rafs_v6.cli._common import (
    add_common,
    add_config,
    add_prefetch,
    check_config,
    examples,
    file_path,
    new_bootstrap,
    read_prefetch,
    report,
    say,
)
from rafs_v6.writer.chunk_dict import generate

_EXAMPLES = """\
  nydus-image chunkdict generate --bootstrap dict.boot app-1.boot app-2.boot
  nydus-image create --chunk-dict dict.boot --bootstrap app-3.boot --blob-dir blobs/ tree/
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("chunkdict", help="make a dictionary of chunks out of images")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    made = actions.add_parser(
        "generate", help="of the chunks that images have in common",
        description="The dictionary has the chunks that at least two of the images have, or all"
        " of the only one. It refers to the images' blobs: keep these.",
        **examples(_EXAMPLES),
    )  # fmt: skip
    made.add_argument("source", type=file_path, nargs="+", metavar="BOOTSTRAP")
    made.add_argument("-B", "--bootstrap", type=file_path, metavar="FILE")
    made.add_argument(
        "-D", "--blob-dir", type=file_path, metavar="DIR",
        help="without --bootstrap, the dictionary goes here, named by its sha256",
    )  # fmt: skip
    add_config(made)
    add_prefetch(made)
    made.add_argument("-v", "--verbose", action="store_true", help="list the chunks")
    made.add_argument("--database", help="accepted for the original's callers; nothing is kept")
    add_common(made)
    made.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    check_config(args)
    made = generate(args.source, new_bootstrap(args), read_prefetch(args))
    report(
        args, bootstrap=made.bootstrap, blobs=made.blobs,
        compressor=made.defaults.compressor.name.lower(),
        extra={"chunks": made.chunks, "size": made.size},
    )  # fmt: skip
    if args.verbose:
        for digest, size in made.found:
            say(args, f"{digest.hex()} {size}")
    say(args, f"chunks: {made.chunks}, {made.size} bytes")
