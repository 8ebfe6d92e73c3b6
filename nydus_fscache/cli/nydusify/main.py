"""``nydusify``: finds the command, prints errors, sets the exit code.

Exit codes: 0 done, 1 any error, 3 no such command, 130 and 143 interrupted.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import Any

import nydus_fscache
from nydus_fscache.cli.nydusify import logs
from nydus_fscache.cli.nydusify.interrupted import Interrupted
from nydus_fscache.cli.nydusify.options import (
    NO_ENV,
    Arguments,
    IncorrectUsage,
    Option,
    check_required,
    help_lines,
    parse,
)
from nydus_fscache.errors import FscacheError
from nydus_fscache.registry.leftovers import end_all
from rafs_v6.errors import RafsError

log = logging.getLogger("nydusify")

PROG = "nydusify"
_HURRY_S = 5.0  # from a signal on, for what is under way
COMMANDS = {
    "convert": "convert",
    "check": "check",
    "copy": "copy",
    "build": "pack",
    "chunkdict": "chunkdict",
    "commit": "commit",
    "mount": "mount",
    "optimize": "optimize",
    "trace": "trace",
}
_ALIASES = {"view": "mount", "pack": "build", "h": "help"}
_GLOBAL = (
    Option("debug", "log all that happens", False, ("D",), ("DEBUG_LOG_LEVEL",)),
    Option("log-level", "panic, fatal, error, warn, info, debug or trace", "info", ("l",)),
    Option("log-file", "write the log to this file"),
    Option("version", "print the version", False, ("v",), (NO_ENV,)),
    Option("help", "show help", False, ("h",), (NO_ENV,)),
)
_HELP = Option("help", "show help", False, ("h",), (NO_ENV,))


def main(argv: Sequence[str] | None = None) -> int:
    """Until the command runs, Ctrl-C ends the process as it ends others: nothing is made yet."""
    plain = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if plain:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return _main(argv)
    finally:
        if plain:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _main(argv: Sequence[str] | None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        found = parse(_GLOBAL, words, os.environ, stop_at_word=True)
    except IncorrectUsage as e:
        return _usage(e, "", _GLOBAL)
    if found.flag("version"):
        _print_version()
        return 0
    command, *rest = found.rest or ["help"]
    command = _ALIASES.get(command, command)
    if command == "help" or found.flag("help"):
        name = _ALIASES.get(rest[0], rest[0]) if rest else ""
        if name and name not in COMMANDS:
            print(f"No help topic for '{name}'", file=sys.stderr)
            return 3
        print(_help(name, _options(name) if name else _GLOBAL))
        return 0
    if command not in COMMANDS:
        print(f"No help topic for '{command}'", file=sys.stderr)
        return 3
    level = "debug" if found.flag("debug") else found.text("log-level")
    logs.start(level, found.text("log-file"))
    return _run(command, rest)


def _run(command: str, words: list[str]) -> int:
    module = _module(command)
    options = [*module.OPTIONS, _HELP]
    named: list[str] = []
    if hasattr(module, "WORDS"):  # a command of two words
        named, words = words[:1], words[1:]
        if not named or named[0] not in module.WORDS:
            print(f"No help topic for '{' '.join([command, *named])}'", file=sys.stderr)
            print(_help(command, options))
            return 3 if named else 0
    try:
        args = parse(options, words, os.environ)
        args.rest = named
        if args.flag("help"):
            print(_help(command, options))
            return 0
        check_required(options, args)
    except IncorrectUsage as e:
        return _usage(e, command, options)
    return _guarded(module, args)


def _guarded(module: Any, args: Arguments) -> int:
    stop = threading.Event()

    hurry: list[threading.Timer] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        first = not stop.is_set()
        stop.set()
        if first:
            if not getattr(module, "PATIENT", False):
                hurry.append(threading.Timer(_HURRY_S, _leave, (128 + number,)))
                hurry[0].daemon = True
                hurry[0].start()
            raise Interrupted(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    code = 0
    try:
        for number in before:
            signal.signal(number, interrupt)
        code = _told(module, args, stop)
        stop.set()  # from here on, signals raise no more
    except Interrupted as e:
        log.error("Received Signal: %s", e.word)
        code = 128 + e.number
    end_all()
    for timer in hurry:
        timer.cancel()
    for number, handler in before.items():
        signal.signal(number, handler)
    return code


def _leave(code: int) -> None:
    """The run waits for somebody who is silent, a registry: it is ended from here."""
    log.error("not waited for any longer")
    end_all()
    logging.shutdown()
    os._exit(code)


def _told(module: Any, args: Arguments, stop: threading.Event) -> int:
    """Runs the command; its errors in one line."""
    try:
        module.run(args, stop)
    except FscacheError as e:
        log.critical("%s", f"{e}; {e.hint}" if e.hint else e)
    except RafsError as e:
        log.critical("%s", e)
    except OSError as e:
        where = f"{e.filename}: " if e.filename else ""
        hint = "; make room, or name another --work-dir" if e.errno == errno.ENOSPC else ""
        log.critical("%s%s%s", where, e.strerror or e, hint)
    else:
        return 0
    return 1


def _usage(error: IncorrectUsage, command: str, options: Sequence[Option]) -> int:
    """The help on standard output, the reason on both, as the original has it."""
    if str(error).startswith("Required"):
        print(_help(command, options))
    else:
        print(f"Incorrect Usage: {error}\n\n{_help(command, options)}")
    if not logging.getLogger().handlers:
        logs.start("info", "")
    log.critical("%s", f"{error}; {error.hint}" if error.hint else error)
    return 1


def _module(command: str) -> Any:
    return import_module(f"nydus_fscache.cli.nydusify.{COMMANDS[command]}")


def _options(command: str) -> Sequence[Option]:
    return [*_module(command).OPTIONS, _HELP]


def _help(command: str, options: Sequence[Option]) -> str:
    if not command:
        lines = [f"   {name:<12} {_module(name).HELP}" for name in COMMANDS]
        return "\n".join(
            [
                f"NAME:\n   {PROG} - convert, check, copy and mount Nydus images",
                f"\nUSAGE:\n   {PROG} [global options] command [command options]",
                "\nCOMMANDS:", *lines, "\nGLOBAL OPTIONS:", help_lines(options),
            ]
        )  # fmt: skip
    module = _module(command)
    return "\n".join(
        [
            f"NAME:\n   {PROG} {command} - {module.HELP}",
            f"\nUSAGE:\n   {PROG} {command} [command options]",
            "\nOPTIONS:", help_lines(options), "\nEXAMPLES:", module.EXAMPLES.rstrip(),
        ]
    )  # fmt: skip


def _print_version() -> None:
    print(f"{PROG} version")
    for label, value in (
        ("Version", f"v{nydus_fscache.__version__}"),
        ("Revision", "nydus-fscache"),
        ("Python version", platform.python_version()),
    ):
        print(f"{label}\t: {value}")


if __name__ == "__main__":
    sys.exit(main())
