"""The command ``nydus-image``: options, JSON and exit codes like the original's.

Only this package prints.  Exit codes: 0 done, 1 failed, 2 wrong usage, or layers that ``merge``
cannot put into one image.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from rafs_v6.cli._common import add_log
from rafs_v6.cli._log import Log
from rafs_v6.errors import RafsError, shown

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
        from rafs_v6.cli._version import version_lines  # noqa: PLC0415 - few callers want to know

        print(version_lines())
        parser.exit()


def main(
    argv: Sequence[str] | None = None, backends: Backends | None = None,
    parser_type: type[argparse.ArgumentParser] = argparse.ArgumentParser,
) -> int:  # fmt: skip
    """``backends``: see ``_images``."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        # Names in images may have characters that the locale has not.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if argv[:1] == ["help"]:
        argv = [*argv[1:], "--help"]
    args = parser(argv, parser_type).parse_args(argv, argparse.Namespace(backends=backends))
    try:
        args.log = Log(args.log_file, args.log_level)
    except OSError as error:
        print(f"nydus-image: --log-file: {error}", file=sys.stderr)
        return 1
    try:
        return _run(args, argv)
    finally:
        args.log.close()


def parser(
    argv: Sequence[str], parser_type: type[argparse.ArgumentParser] = argparse.ArgumentParser
) -> argparse.ArgumentParser:
    """Of the command that ``argv`` begins with; of all, when it begins with none."""
    made = parser_type(
        prog="nydus-image",
        description="Build, merge, check, compare and take apart RAFS v6 images.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("-V", "--version", nargs=0, action=_Version, help="print it and exit")
    add_log(made, top=True)
    if argv[:1] in (["--version"], ["-V"]):
        return made
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # A small image is built in less time than it takes to import all commands.
    for name in argv[:1] if argv[:1] and argv[0] in _COMMANDS else _COMMANDS:
        import_module(f"{__name__}.{name}").add_parser(commands)
    return made


def _text(error: Exception) -> str:
    """Names of files as they are, where Python shows b'...'."""
    if isinstance(error, OSError) and isinstance(error.filename, bytes):
        return f"{shown(error.filename)}: {error.strerror}"
    return str(error)


def _run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    start = time.monotonic()
    args.log.info(f"begins: nydus-image {' '.join(argv)}")
    try:
        args.run(args)
    except (RafsError, OSError) as error:
        print(f"nydus-image {args.command}: {_text(error)}", file=sys.stderr)
        code: int = getattr(error, "exit_code", 1)
        args.log.error(f"failed with exit code {code}: {_text(error)}")
        return code
    args.log.info(f"done after {time.monotonic() - start:.3f} s")
    return 0
