"""``state.json`` on disk, and ``state.log`` beside it: a change costs what it is, however much
there is that does not change.

A small state is one file that is replaced whole, as every version reads it.  From ``SMALL`` bytes
on it says the name of a log (its first line, chosen anew with each ``state.json``), to which
changes are appended, a line each, synced; when that is longer than the state, all is written anew.

Guarantees: after a kill or a power cut at any moment ``read`` has the state before a change or the
one after it.  A log of another name is of an earlier ``state.json`` and means nothing; a last line
that is cut was not announced to anybody; a line that is damaged before others is an error.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nydus_fscache.files import replace_file, sync

SMALL = 16 << 10  # bytes: some twenty mounts
LOGGED = "log"  # the key of the log's name
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW

Document = dict[str, Any]


def log_of(path: Path) -> Path:
    return path.with_suffix(".log")


def read(path: Path, version_logged: int) -> Document:
    """The state as it stands.  Raises ``OSError``, and ``ValueError`` for what is damaged."""
    document: Any = json.loads(path.read_bytes())
    if isinstance(document, dict) and document.get("version") == version_logged:
        _apply(document, _changes(log_of(path), document.get(LOGGED)))
    if not isinstance(document, dict):
        raise ValueError("not an object")
    return document


def _changes(path: Path, name: Any) -> list[Document]:
    """Of the log of this name; none where it is of another, or not begun."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what has no end was cut
    except FileNotFoundError:
        return []
    found: list[Document] = []
    for number, line in enumerate(lines):
        try:
            found.append(json.loads(line))
        except ValueError:
            if any(map(_is_whole, lines[number + 1 :])):
                raise ValueError(f"line {number + 1} of {path.name} is damaged") from None
            break  # the end of what a disk without power has
        if found[0] != {LOGGED: name}:
            return []
    return found[1:]


def _is_whole(line: bytes) -> bool:
    with contextlib.suppress(ValueError):
        return isinstance(json.loads(line), dict)
    return False


def _apply(document: Document, changes: Iterable[Document]) -> None:
    """A binding is named by its number: the state's by their places, later ones by what follows."""
    try:
        bindings = dict(enumerate(document["bindings"]))
        for change in changes:
            for number in change.get("gone", ()):
                bindings.pop(number, None)
            for number, binding in change.get("set", ()):
                bindings[number] = binding
            document["numbers"].update(change.get("numbers", {}))
            if "cache_limit" in change:
                document["cache_limit"] = change["cache_limit"]
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"a change of the log is none: {e!r}") from e
    document["bindings"] = list(bindings.values())


class StateFile:
    """Of the one process that writes it; not thread-safe.  What an earlier one wrote is replaced
    whole by the first ``replace``, which has to come before the first ``append``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log = log_of(path)
        self._name = ""  # of the log; none: it cannot be appended to
        self._fd = -1
        self._size = self._room = 0

    def replace(self, bindings: Iterable[str], rest: Mapping[str, Any], logged: int | None) -> None:
        """All of it anew: ``bindings`` as JSON, each in a line of its own, and what else there is.

        ``logged``: the version of a state with a log; None: none may be begun.
        """
        lines = ",\n".join(bindings)
        name = os.urandom(8).hex() if logged is not None and len(lines) >= SMALL else ""
        extra = {"version": logged, LOGGED: name} if name else {}
        tail = json.dumps({**rest, **extra})[1:]
        content = f'{{"bindings": [\n{lines}\n],\n{tail}\n'.encode()
        replace_file(self.path, content)
        had_log = self.is_logged
        self._let_go()
        self._name, self._room = name, len(content)
        if name or had_log:  # a log of this name must not be there without it
            sync(self.path.parent)
        if not name:
            with contextlib.suppress(OSError):
                self._log.unlink(missing_ok=True)

    def _let_go(self) -> None:
        self._name, self._size = "", 0
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def is_logged(self) -> bool:
        """Can it be appended to?  Else ``replace`` is the way: it is small, or a write failed."""
        return bool(self._name)

    @property
    def is_long(self) -> bool:
        """Is it time to write all anew?"""
        return self._size > self._room

    def append(self, change: str) -> None:
        """A line (JSON: see ``_apply``) that is on the disk when this returns; ``OSError``, and
        then nothing has changed, or it cannot be appended to any more."""
        line = change.encode() + b"\n"
        try:
            if self._fd < 0:
                self._begin(line)
                return
            if os.write(self._fd, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(self._fd)
        except OSError:
            try:
                os.ftruncate(self._fd, self._size)
            except OSError:  # also where there was none to cut
                self._let_go()
            raise
        self._size += len(line)

    def _begin(self, line: bytes) -> None:
        content = json.dumps({LOGGED: self._name}).encode() + b"\n" + line
        replace_file(self._log, content)
        self._fd, self._size = os.open(self._log, _APPEND), len(content)
