"""Bytes that are appended and read again later: in memory while they are few, then in a file.

A build keeps a hundred bytes of each chunk until its end, which a large image has millions of.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator

from rafs_v6.writer.errors import BuildError

IN_MEMORY = 1 << 20  # bytes; more go to the file
_PIECE = 1 << 20


class Spill:
    """``unit``: pieces are whole numbers of so many bytes."""

    __slots__ = ("__weakref__", "_fd", "_stored", "_tail", "_unit")

    def __init__(self, unit: int = 1) -> None:
        self._unit = unit
        self._tail = bytearray()
        self._fd = -1  # closed with the last reference to this
        self._stored = 0

    def __len__(self) -> int:
        """Bytes."""
        return self._stored + len(self._tail)

    def append(self, data: bytes | bytearray | memoryview) -> None:
        if len(self._tail) + len(data) < IN_MEMORY:
            self._tail += data
            return
        if self._fd < 0:
            self._fd = _nameless_file()
            weakref.finalize(self, os.close, self._fd)
        tail, self._tail = self._tail, bytearray()
        self._store(tail)
        self._store(data)

    def _store(self, data: bytes | bytearray | memoryview) -> None:
        with memoryview(data) as rest:
            done = 0
            while done < len(rest):
                done += _write(self._fd, rest[done:], self._stored + done)
        self._stored += len(data)

    def pieces(self) -> Iterator[bytes | bytearray]:
        """All of it, in order; nothing is appended meanwhile."""
        at, step = 0, _PIECE // self._unit * self._unit
        while at < self._stored:
            yield self._read(at, min(step, self._stored - at))
            at += step
        if self._tail:
            yield self._tail

    def whole(self) -> bytearray:
        out = bytearray()
        for piece in self.pieces():
            out += piece
        return out

    def _read(self, at: int, length: int) -> bytes:
        data = os.pread(self._fd, length, at)
        if len(data) != length:
            raise BuildError("a temporary file of the build was cut")
        return data


def _nameless_file() -> int:
    import tempfile  # noqa: PLC0415 - most builds are small

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _write(fd: int, data: memoryview, at: int) -> int:
    try:
        return os.pwrite(fd, data, at)
    except OSError as error:
        raise BuildError(
            f"a temporary file of the build: {error.strerror}: name a directory with room by TMPDIR"
        ) from error
