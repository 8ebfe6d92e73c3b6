"""Files cut into pieces that share an arena: read and digested in C, an arena at a time.

Memory is one arena of ``_ARENA`` bytes whatever the tree's size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from rafs_v6._build import ffi, lib
from rafs_v6.build.errors import BuildError
from rafs_v6.build.tree import Node, traverse
from rafs_v6.erofs import Digester

_ARENA = 16 << 20
MAX_PIECES = 512  # also bounds the descriptors that are open at once


Progress = Callable[[int, int], None]
"""Is told of the bytes that were read, and of all there are."""


class Pieces:
    """``add_all`` files; ``ready`` is called for every arena that is full.

    ``array``: ``struct rafs_piece[]``, of which ``users`` has one (node, offset in
    the file) each; ``arena``: their data, ``room`` bytes of it at least for each.
    A node that was read has no extent any more.  ``root`` is only for messages.
    """

    def __init__(
        self, root: Node, chunk_size: int, digester: Digester, threads: int,
        ready: Callable[[], None], room: int = 0,
    ) -> None:  # fmt: skip
        self.arena_len = max(_ARENA, chunk_size)
        self.array: Any = ffi.new("struct rafs_piece[]", MAX_PIECES)
        self.users: list[tuple[Node, int]] = []
        self._buffer = bytearray(self.arena_len)
        self.arena: Any = ffi.from_buffer("uint8_t[]", self._buffer)
        self._root = root
        self._chunk_size, self._digester, self._threads = chunk_size, digester, threads
        self._ready, self._room = ready, room
        self._fds: list[int] = []
        self._used = 0

    def __len__(self) -> int:
        return len(self.users)

    def add_all(self, files: Sequence[Node], progress: Progress | None = None) -> None:
        done, total = 0, sum(node.size for node in files)
        for node in files:
            self._add(node)
            done += node.size
            if progress is not None:
                progress(done, total)
        self._flush()

    def _add(self, node: Node) -> None:
        extent, node.extent = node.extent, None
        assert extent is not None
        fd = extent.fd
        for at in range(0, node.size, self._chunk_size):
            length = min(self._chunk_size, node.size - at)
            room = max(length, self._room)
            if self._used + room > self.arena_len or len(self.users) == MAX_PIECES:
                self._flush()
                if extent.fd < 0:
                    fd = -1
            if fd < 0:
                fd = os.open(extent.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                self._fds.append(fd)
            piece = self.array[len(self.users)]
            piece.fd, piece.len = fd, length
            piece.off, piece.at = extent.off + at, self._used
            self._used += room
            self.users.append((node, at))

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
        node = self.users[i][0]
        return os.fsdecode(next(path for path, n in traverse(self._root) if n is node))

    def _error(self, rc: int) -> Exception:
        for i in range(len(self.users)):
            error = -self.array[i].error
            if error:
                return BuildError(f"{self.path_of(i)}: {os.strerror(error)} while it was read")
        return OSError(-rc, os.strerror(-rc))

    def _close_files(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def close(self) -> None:
        """Give the arena back; ``ready`` mostly refers to us, and that cycle would keep it."""
        self._close_files()
        del self._ready, self._buffer, self.arena
