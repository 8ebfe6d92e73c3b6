"""Files cut into chunks that share an arena: read and digested in C, an arena at a time.

Memory is two arenas whatever the tree's size: one is read into while what the
other holds is used.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from typing import Any

from rafs_v6._writer import ffi, lib
from rafs_v6.format.erofs import Digester
from rafs_v6.writer.background import Background
from rafs_v6.writer.errors import BuildError
from rafs_v6.writer.options import Progress
from rafs_v6.writer.sources.source import Source
from rafs_v6.writer.tree import Tree

_ARENA = 8 << 20
MAX_BATCH = 512  # also bounds the descriptors that are open at once


class ReadBatch:
    """``chunks``: ``struct rafs_read_chunk[]``; ``users`` has (row, offset in the file) of each;
    ``arena``: their data."""

    def __init__(self, arena_len: int) -> None:
        self.chunks: Any = ffi.new("struct rafs_read_chunk[]", MAX_BATCH)
        self.users: list[tuple[int, int]] = []
        self.arena = new_arena(arena_len)
        self.used = 0

    def __len__(self) -> int:
        return len(self.users)


def new_arena(size: int) -> Any:
    """``uint8_t[]``, whose pages take memory only when they are used."""
    return ffi.from_buffer("uint8_t[]", mmap.mmap(-1, size))


class ChunkReader:
    """``add_all`` files; ``use`` is called for every batch, beside the reading of the next.

    ``room``: bytes of the arena at least for each chunk.
    """

    def __init__(
        self, tree: Tree, source: Source, digester: Digester, threads: int,
        use: Callable[[ReadBatch], None], room: int = 0,
    ) -> None:  # fmt: skip
        self.arena_len = max(_ARENA, tree.chunk_size)
        self._batch, self._other = ReadBatch(self.arena_len), ReadBatch(self.arena_len)
        self._tree, self._source = tree, source
        self._digester, self._threads = digester, threads
        self._use, self._room = use, room
        self._fds: list[int] = []
        self._using = Background()

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
        self._using.finish()

    def _add(self, row: int) -> None:
        size, path, extent = self._tree.size[row], self._tree.path(row), self._tree.extent[row]
        fd = -1
        for at in range(0, size, self._tree.chunk_size):
            length = min(self._tree.chunk_size, size - at)
            room = max(length, self._room)
            if self._batch.used + room > self.arena_len or len(self._batch) == MAX_BATCH:
                self._flush()
                fd = -1
            if fd < 0:
                fd, start = self._source.open(path, extent)
                self._fds.append(fd)
            batch = self._batch
            chunk = batch.chunks[len(batch)]
            chunk.fd, chunk.len = fd, length
            chunk.off, chunk.at = start + at, batch.used
            batch.used += room
            batch.users.append((row, at))

    def _flush(self) -> None:
        batch = self._batch
        if not batch.users:
            return
        rc = lib.rafs_build_read(
            batch.chunks, len(batch), batch.arena, self.arena_len, self._digester, self._threads
        )
        self._close_files()
        if rc:
            raise self._error(batch, rc)
        self._using.start(lambda: self._use(batch))
        self._batch, self._other = self._other, batch
        self._batch.users.clear()
        self._batch.used = 0

    def path_of(self, batch: ReadBatch, i: int) -> str:
        """Of the user of chunk ``i``, for a message."""
        return os.fsdecode(self._tree.path(batch.users[i][0]))

    def _error(self, batch: ReadBatch, rc: int) -> Exception:
        for i in range(len(batch)):
            error = -batch.chunks[i].error
            if error:
                path = self.path_of(batch, i)
                return BuildError(f"{path}: {os.strerror(error)} while it was read")
        return OSError(-rc, os.strerror(-rc))

    def _close_files(self) -> None:
        for fd in self._fds:
            self._source.close_file(fd)
        self._fds.clear()

    def close(self) -> None:
        """Give the arenas back; ``use`` mostly refers to us, and that cycle would keep them."""
        self._using.close()
        self._close_files()
        del self._use, self._batch, self._other
