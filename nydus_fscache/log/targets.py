"""Where log records go: standard error, the journal, or a file that is rotated; and events.

Used by the log's own thread.  What cannot be written is lost: no reader waits for it, and no
error comes of it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EVENTS = "events"  # the logger of events
TARGET = "NYDUS_FSCACHE_LOG_TO"  # environment: "stderr", "journal" or "file"
MAX_SIZE = "NYDUS_FSCACHE_LOG_SIZE"  # bytes of a file before it is rotated
KEEP = "NYDUS_FSCACHE_LOG_KEEP"  # rotated files that stay
DEFAULT_MAX_SIZE = 16 << 20
DEFAULT_KEEP = 3
LOG_NAME, EVENTS_NAME = "daemon.log", "events.jsonl"

_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s"
_JOURNAL = "/run/systemd/journal/socket"
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
_LONGEST = 32 << 10  # of a message to the journal; a datagram must not be larger than its buffer
_EVENTS_SIZE = 4 << 20
_OPEN = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
_COPY = 1 << 20


def text_target(root: Path, environment: Mapping[str, str]) -> logging.Handler:
    """By the environment: ``TARGET`` and, of a file, ``MAX_SIZE`` and ``KEEP``.  Standard error
    that is a file of this root (``mount`` starts the daemon so) is rotated, too."""
    target = environment.get(TARGET) or "stderr"
    if target == "journal":
        with contextlib.suppress(OSError):
            return _Journal()
    path = root / LOG_NAME
    size = _number(environment, MAX_SIZE, DEFAULT_MAX_SIZE)
    keep = _number(environment, KEEP, DEFAULT_KEEP)
    if target == "file":
        with contextlib.suppress(OSError):  # the keeper writes there, too: so does who adopts it
            fd = os.open(path, _OPEN, 0o600)
            os.dup2(fd, 2)
            os.close(fd)
    handler = _StandardError(path, size, keep)
    handler.setFormatter(logging.Formatter(_FORMAT, "%Y-%m-%dT%H:%M:%S"))
    return handler


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    try:
        return max(0, int(environment[name]))
    except (KeyError, ValueError):
        return default


def _is_no_event(record: logging.LogRecord) -> bool:
    return record.name != EVENTS


class _StandardError(logging.StreamHandler[Any]):
    """Rotates the file when it has become too large, if standard error is that file."""

    def __init__(self, path: Path, size: int, keep: int) -> None:
        super().__init__(sys.stderr)
        self._path, self._size, self._keep = path, size, keep
        self.addFilter(_is_no_event)

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        with contextlib.suppress(OSError):
            status = os.fstat(2)
            if self._size and stat.S_ISREG(status.st_mode) and status.st_size > self._size:
                self._rotate(status)

    def _rotate(self, status: os.stat_result) -> None:
        """The keeper has it open, too: so the file stays, and its content moves."""
        if not os.path.samestat(status, self._path.lstat()):
            return  # not a file of ours
        for number in range(self._keep, 1, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self._path}.{number - 1}", f"{self._path}.{number}")
        source = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if self._keep:
                _copy(source, f"{self._path}.1")
            os.ftruncate(source, 0)
        finally:
            os.close(source)


def _copy(source: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name)
    target = os.open(name, _OPEN | os.O_EXCL, 0o600)
    try:
        while data := os.read(source, _COPY):
            os.write(target, data)
    finally:
        os.close(target)


class _Journal(logging.Handler):
    """systemd's journal, by its own protocol, so that lines keep their level and origin.

    https://systemd.io/JOURNAL_NATIVE_PROTOCOL/: one field a line; a value with line breaks is
    preceded by its length.
    """

    def __init__(self) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(_JOURNAL)
        except BaseException:
            self._socket.close()
            raise
        self._socket.setblocking(False)
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        self.addFilter(_is_no_event)

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            try:
                self._socket.send(self._datagram(record))
            except ConnectionRefusedError:  # journald was started anew
                self._socket.connect(_JOURNAL)
                self._socket.send(self._datagram(record))

    def _datagram(self, record: logging.LogRecord) -> bytes:
        message = self.format(record).encode("utf-8", "backslashreplace")[:_LONGEST]
        priority = _PRIORITIES.get(record.levelno, 6)
        head = (
            f"SYSLOG_IDENTIFIER=nydus-fscache\nPRIORITY={priority}\nNYDUS_LOGGER={record.name}\n"
        )
        return head.encode() + b"MESSAGE\n" + len(message).to_bytes(8, "little") + message + b"\n"


class EventFile(logging.Handler):
    """``events.jsonl``: an object a line, of each event and each error; one older file stays."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._path = root / EVENTS_NAME
        self.addFilter(lambda record: record.name == EVENTS or record.levelno >= logging.ERROR)

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):
            fd = os.open(self._path, _OPEN, 0o600)
            try:
                os.write(fd, _event_line(record))
                size = os.fstat(fd).st_size
            finally:
                os.close(fd)
            if size > _EVENTS_SIZE:
                os.replace(self._path, f"{self._path}.1")


def _event_line(record: logging.LogRecord) -> bytes:
    document: dict[str, Any] = {"time": round(record.created, 3)}
    if record.name == EVENTS:
        document |= {"event": record.getMessage(), **getattr(record, "fields", {})}
    else:
        document |= {"event": "error", "of": record.name, "message": record.getMessage()}
    return json.dumps(document).encode() + b"\n"  # ASCII: whatever a name is made of
