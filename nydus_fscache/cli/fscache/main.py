"""The frame of the command line: finds the command, prints errors, sets the exit code.

Guarantees: an error is one line that says what failed and one line that says what
to do (with ``--json``, one JSON object), both on standard error; the exit code is
the error's.  Only the chosen command's module is imported; ``--help`` imports them all.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import nydus_fscache
from nydus_fscache.cli.arguments import Parser
from nydus_fscache.errors import FscacheError, UsageError

COMMANDS = (
    "mount",
    "umount",
    "status",
    "top",
    "events",
    "serve",
    "upgrade",
    "stop",
    "bind",
    "unbind",
    "config",
    "doctor",
    "bugreport",
    "ls",
    "cat",
    "stat",
    "prefetch",
    "trace",
    "gc",
    "login",
    "store",
    "graphdriver",
)

PROG = "nydus-fscache"
EXIT_INTERRUPTED = 130


class _Parser(Parser):
    """Words that make no sense are an error like any other."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"see {self.prog} --help")


def parser_for(commands: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of these commands (``COMMANDS`` for manual and completions)."""
    parser = _Parser(
        prog=PROG,
        description="Container images loaded lazily inside the Linux kernel.",
        epilog="Exit codes: 0 done, 1 other error, 2 usage, 3 bad image, 4 backend, 5 kernel,\n"
        "6 mountpoint, 7 not root, 8 cache directory, 9 daemon, 130 interrupted.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"{PROG} {nydus_fscache.__version__}"
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in commands:
        import_module(f"nydus_fscache.cli.fscache.{name}").register(subparsers)
    for command in subparsers.choices.values():
        with contextlib.suppress(argparse.ArgumentError):  # it has one of its own
            command.add_argument(
                "--json", action="store_true", help="print an error as one JSON object"
            )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    try:
        code = _run(words)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except FscacheError as e:
        return _report(e, as_json="--json" in words)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as `head` does: silence
        _drop_output()
        return FscacheError.exit_code
    except OSError as e:
        _drop_output()
        where = f"{os.fspath(e.filename)!s}: " if e.filename else ""
        return _report(FscacheError(f"{where}{e.strerror or e}"), as_json="--json" in words)


def _prepare_streams() -> None:
    """Where standard streams are closed, files that are opened must not get their numbers; and
    whatever a name is made of can be printed."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    codecs.register_error("nydus", _as_it_came)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="nydus")


def _as_it_came(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes of a name that were not text go out as they are, what the encoding lacks as escapes."""
    assert isinstance(error, UnicodeEncodeError)
    part = error.object[error.start]
    if "\udc80" <= part <= "\udcff":
        return bytes([ord(part) - 0xDC00]), error.start + 1
    return part.encode("ascii", "backslashreplace"), error.start + 1


def _drop_output() -> None:
    """Or the interpreter would flush it at its end, and fail again."""
    if sys.stdout is not None:
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)


def _read_settings() -> None:
    file = os.environ.get("NYDUS_FSCACHE_CONFIG") or "/etc/nydus-fscache/config.toml"
    if os.path.exists(file):  # most have none, and start sooner
        from nydus_fscache.config import settings  # noqa: PLC0415

        settings.apply()


def _run(words: Sequence[str]) -> int:
    _read_settings()  # before the parsers, whose defaults it has
    commands = [words[0]] if words and words[0] in COMMANDS else COMMANDS
    args = parser_for(commands).parse_args(words)
    module: Any = import_module(f"nydus_fscache.cli.fscache.{args.command}")
    return int(module.run(args))


def _report(error: FscacheError, *, as_json: bool) -> int:
    if sys.stderr is None:
        return error.exit_code
    if as_json:
        import json  # noqa: PLC0415 - start-up time

        document = {
            "error": str(error),
            "hint": error.hint,
            "kind": type(error).__name__,
            "exit_code": error.exit_code,
        }
        print(json.dumps(document), file=sys.stderr)
    else:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code
