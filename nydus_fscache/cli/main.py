"""The frame of the command line: finds the command, prints errors, sets the exit code.

Only the chosen command's module is imported; ``--help`` imports them all.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import nydus_fscache
from nydus_fscache.errors import FscacheError

COMMANDS = (
    "mount",
    "umount",
    "status",
    "serve",
    "stop",
    "bind",
    "unbind",
    "doctor",
    "ls",
    "cat",
    "stat",
)

EXIT_INTERRUPTED = 130


def parser_for(commands: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nydus-fscache",
        description="Container images loaded lazily inside the Linux kernel.",
        epilog="Exit codes: 0 done, 1 other error, 2 usage, 3 bad image, 4 backend, 5 kernel,\n"
        "6 mountpoint, 7 not root, 8 cache directory, 9 daemon.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=nydus_fscache.__version__)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in commands:
        import_module(f"nydus_fscache.cli.{name}").register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    commands = [words[0]] if words and words[0] in COMMANDS else COMMANDS
    args = parser_for(commands).parse_args(words)
    module: Any = import_module(f"nydus_fscache.cli.{args.command}")
    try:
        code = int(module.run(args))
        sys.stdout.flush()
        return code
    except FscacheError as e:
        print(f"nydus-fscache: error: {e}", file=sys.stderr)
        print(f"hint: {e.hint or 'see nydus-fscache ' + args.command + ' --help'}", file=sys.stderr)
        return e.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # the reader of our output has gone: no trace of ours in its way
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
