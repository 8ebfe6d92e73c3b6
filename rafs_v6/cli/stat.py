"""``nydus-image stat``: how many chunks images have, and how many they share."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from rafs_v6.cli._common import (
    add_common,
    add_config,
    check_config,
    examples,
    file_path,
    say,
    write_json,
)
from rafs_v6.errors import ImageError
from rafs_v6.reader.bootstrap import Bootstrap
from rafs_v6.tools.blobs import is_dictionary, load_bootstrap
from rafs_v6.tools.stat import lines, stat_images
from rafs_v6.validate import validate
from rafs_v6.writer.errors import BuildError, UsageError

EXAMPLES = """\
  nydus-image stat --bootstrap image.boot
  nydus-image stat --blob-dir bootstraps/ --target new.boot --output-json stat.json
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "stat", help="count what images have and share", **examples(EXAMPLES)
    )
    parser.add_argument("-B", "--bootstrap", type=file_path, metavar="FILE")
    parser.add_argument(
        "-D", "--blob-dir", type=file_path, metavar="DIR", help="all images in it, not below"
    )
    parser.add_argument(
        "-T", "--target", type=file_path, metavar="FILE",
        help="how much of this one the others have already",
    )  # fmt: skip
    parser.add_argument(
        "--digester", choices=("blake3", "sha256"), default="blake3",
        help="accepted as in the original: bootstraps name their own",
    )  # fmt: skip
    add_config(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    check_config(args)
    if args.bootstrap is None and args.blob_dir is None:
        raise UsageError("of which image? give --bootstrap or --blob-dir")
    base = [_open(args.bootstrap)] if args.blob_dir is None else _directory(args.blob_dir)
    document = stat_images(base, None if args.target is None else _open(args.target))
    for line in lines(document):
        say(args, line)
    if args.output_json is not None:
        write_json(args.output_json, document)


def _open(path: Path) -> Bootstrap:
    bootstrap = load_bootstrap(path)
    if not is_dictionary(bootstrap):
        validate(bootstrap)
    return bootstrap


def _directory(directory: Path) -> list[Bootstrap]:
    found = []
    for path in sorted(directory.iterdir()):
        if not path.is_file():
            continue
        with contextlib.suppress(ImageError):  # a blob, or something else
            found.append(_open(path))
    if not found:
        raise BuildError(f"{directory} does not hold an image")
    return found
