"""Files cut into pieces that share an arena: read and digested in C, an arena at a time.

Memory is one arena of ``_ARENA`` bytes whatever the tree's size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from rafs_v6._build import ffi, lib
from rafs_v6.build.errors import BuildError
from rafs_v6.build.sources import Source
from rafs_v6.build.tree import Tree
from rafs_v6.erofs import Digester

_ARENA = 16 << 20
MAX_PIECES = 512  # also bounds the descriptors that are open at once


Progress = Callable[[int, int], None]
"""Is told of the bytes that were read, and of all there are."""


class Pieces:
    """``add_all`` files; ``ready`` is called for every arena that is full.

    ``array``: ``struct rafs_piece[]``, of which ``users`` has one (row, offset in
    the file) each; ``arena``: their data, ``room`` bytes of it at least for each.
    """

    def __init__(
        self, tree: Tree, source: Source, digester: Digester, threads: int,
        ready: Callable[[], None], room: int = 0,
    ) -> None:  # fmt: skip
        chunk_size = tree.chunk_size
        self.arena_len = max(_ARENA, chunk_size)
        self.array: Any = ffi.new("struct rafs_piece[]", MAX_PIECES)
        self.users: list[tuple[int, int]] = []
        self._buffer = bytearray(self.arena_len)
        self.arena: Any = ffi.from_buffer("uint8_t[]", self._buffer)
        self._tree, self._source = tree, source
        self._chunk_size, self._digester, self._threads = chunk_size, digester, threads
        self._ready, self._room = ready, room
        self._fds: list[int] = []
        self._used = 0

    def __len__(self) -> int:
        return len(self.users)

    def add_all(self, files: Sequence[int], progress: Progress | None = None) -> None:
        """``files``: rows."""
        sizes = self._tree.size
        done, total = 0, sum(sizes[row] for row in files)
        for row in files:
            self._add(row)
            done += sizes[row]
            if progress is not None:
                progress(done, total)
        self._flush()

    def _add(self, row: int) -> None:
        size, path, extent = self._tree.size[row], self._tree.path(row), self._tree.extent[row]
        fd = -1
        for at in range(0, size, self._chunk_size):
            length = min(self._chunk_size, size - at)
            room = max(length, self._room)
            if self._used + room > self.arena_len or len(self.users) == MAX_PIECES:
                self._flush()
                fd = -1
            if fd < 0:
                fd, start = self._source.open(path, extent)
                self._fds.append(fd)
            piece = self.array[len(self.users)]
            piece.fd, piece.len = fd, length
            piece.off, piece.at = start + at, self._used
            self._used += room
            self.users.append((row, at))

    def _flush(self) -> None:
        try:
            if self.users:
                rc = lib.rafs_build_read(
                    self.array, len(self), self.arena, self.arena_len, self._digester,
                    self._threads,
                )  # fmt: skip
                if rc:
                    raise self._error(rc)
                self._ready()
        finally:
            self._close_files()
            self.users.clear()
            self._used = 0

    def path_of(self, i: int) -> str:
        """Of the user of piece ``i``, for a message."""
        return os.fsdecode(self._tree.path(self.users[i][0]))

    def _error(self, rc: int) -> Exception:
        for i in range(len(self.users)):
            error = -self.array[i].error
            if error:
                return BuildError(f"{self.path_of(i)}: {os.strerror(error)} while it was read")
        return OSError(-rc, os.strerror(-rc))

    def _close_files(self) -> None:
        for fd in self._fds:
            self._source.close_file(fd)
        self._fds.clear()

    def close(self) -> None:
        """Give the arena back; ``ready`` mostly refers to us, and that cycle would keep it."""
        self._close_files()
        del self._ready, self._buffer, self.arena
