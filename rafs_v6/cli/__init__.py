"""The command ``nydus-image``: options, JSON and exit codes like the original's.

Only this package prints.  Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from rafs_v6.cli import _common
from rafs_v6.errors import RafsError

if TYPE_CHECKING:
    from rafs_v6.cli._images import Backends

_COMMANDS = (
    "create", "merge", "chunkdict", "check", "inspect", "stat", "diff", "unpack", "export",
    "compact", "optimize",
)  # fmt: skip

EXAMPLES = """\
examples:
  nydus-image create --bootstrap image.boot --blob-dir blobs/ tree/
  nydus-image create --type targz-rafs --blob-inline-meta --blob-dir blobs/ layer.tar.gz
  nydus-image merge --bootstrap image.boot blobs/3f… blobs/9a…
  nydus-image chunkdict generate --bootstrap dict.boot app-1.boot app-2.boot
  nydus-image check image.boot --blob-dir blobs/
  nydus-image inspect image.boot --request blobs
  nydus-image diff old.boot new.boot
  nydus-image unpack image.boot --blob-dir blobs/ --output image.tar
  nydus-image export --block --verity image.boot --blob-dir blobs/
  nydus-image optimize -B image.boot -D blobs/ -p started-files.txt
each COMMAND --help has more
"""


class _Version(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace,
        values: object, option_string: str | None = None,
    ) -> None:  # fmt: skip
        print(f"{parser.prog} {_common.own_version()}")
        parser.exit()


def main(argv: Sequence[str] | None = None, backends: Backends | None = None) -> int:
    """``backends``: see ``source``."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="nydus-image",
        description="Build, merge, check, compare and take apart RAFS v6 images.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", nargs=0, action=_Version, help="print it and exit")
    parser.add_argument("-L", "--log-file", help="accepted for the original's callers")
    parser.add_argument("-l", "--log-level", default="info", help="accepted likewise")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # A small image is built in less time than it takes to import all commands.
    for name in argv[:1] if argv[:1] and argv[0] in _COMMANDS else _COMMANDS:
        import_module(f"{__name__}.{name}").add_parser(commands)
    args = parser.parse_args(argv, argparse.Namespace(backends=backends))
    try:
        args.run(args)
    except (RafsError, OSError) as error:
        print(f"nydus-image {args.command}: {error}", file=sys.stderr)
        return 1
    return 0
