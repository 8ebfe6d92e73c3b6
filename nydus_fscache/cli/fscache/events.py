"""``events``: mounts, restarts and errors, as the daemon noted them, one JSON object a line."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nydus_fscache.cli.fscache.common import add_root, require_root

NAME = "events"
HELP = "show mounts, restarts and errors as JSON lines"
EXAMPLES = """\
examples:
  nydus-fscache events --last 20
  nydus-fscache events --follow --kind error
  nydus-fscache events | jq -r 'select(.event == "mounted") | .image'

Every line has "time" (seconds since 1970) and "event": started, stopped, taken-over, making-way,
upgrade-failed, mounted, unmounted, moved, bound, unbound, served-again, independent, evicted,
error. The daemon keeps about the last 30000.
"""
_POLL_S = 0.2


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        NAME,
        help=HELP,
        description="Show what happened, oldest first. Needs no running daemon.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes")
    parser.add_argument(
        "-n", "--last", metavar="N", type=_count, help="only the last N of those there are"
    )
    parser.add_argument(
        "--kind", metavar="KIND", action="append", help="only these; may be given more than once"
    )
    parser.add_argument("--json", action="store_true", help="lines are JSON in any case")
    add_root(parser)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def run(args: argparse.Namespace) -> int:
    require_root("events")
    path = args.root / "events.jsonl"
    with _File(path) as file:
        old = _wanted([*_lines(Path(f"{path}.1")), *file.new()], args.kind)
        _print(deque(old, args.last) if args.last is not None else old)
        while args.follow:
            _print(_wanted(file.new(), args.kind))
            time.sleep(_POLL_S)
    return 0


class _File:
    """Follows the file by its name, through its rotations; half a line waits for its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._rest = b""

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def new(self) -> Iterator[bytes]:
        yield from self._read()
        with contextlib.suppress(FileNotFoundError):
            if self._fd < 0 or not os.path.samestat(self._path.stat(), os.fstat(self._fd)):
                yield from self._read()  # written between our last look and the rotation
                if self._fd >= 0:
                    os.close(self._fd)
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                yield from self._read()

    def _read(self) -> Iterator[bytes]:
        while self._fd >= 0 and (data := os.read(self._fd, 1 << 20)):
            *lines, self._rest = (self._rest + data).split(b"\n")
            yield from lines


def _lines(path: Path) -> list[bytes]:
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes().splitlines()
    return []


def _wanted(lines: list[bytes] | Iterator[bytes], kinds: list[str] | None) -> Iterator[str]:
    for line in lines:
        with contextlib.suppress(ValueError):  # cut by a full disk
            document: dict[str, Any] = json.loads(line)
            if isinstance(document, dict) and (not kinds or document.get("event") in kinds):
                yield json.dumps(document)


def _print(lines: Any) -> None:
    for line in lines:
        print(line)
    sys.stdout.flush()
