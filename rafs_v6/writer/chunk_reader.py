"""Files cut into chunks that share an arena: read and digested in C, an arena at a time.

Memory is two arenas whatever the tree's size: one is read into while what the
other holds is used.
"""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rafs_v6._writer import ffi, lib
from rafs_v6.format.erofs import Digester
from rafs_v6.writer.background import Background
from rafs_v6.writer.errors import BuildError
from rafs_v6.writer.options import Progress
from rafs_v6.writer.sources.source import Source
from rafs_v6.writer.tree import Tree, column_in_c

_ARENA = 8 << 20
MAX_BATCH = 1024


class ReadBatch:
    """``chunks``: ``struct rafs_read_chunk[]``, ``count`` of them used; ``arena``: their data."""

    def __init__(self, arena_len: int) -> None:
        self.chunks: Any = ffi.new("struct rafs_read_chunk[]", MAX_BATCH)
        self.arena = new_arena(arena_len)
        self.count = self.used = 0

    def clear(self) -> None:
        self.count = self.used = 0


def new_arena(size: int) -> Any:
    """``uint8_t[]``, whose pages take memory only when they are used."""
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared pages cost more to make
    return ffi.from_buffer("uint8_t[]", mmap.mmap(-1, size, flags=private))


class ChunkReader:
    """``add_all`` files, or ``add_data`` of one; ``use`` is called for every batch, ``beside`` the
    reading of the next.

    ``room``: bytes of the arena at least for each chunk.
    """

    def __init__(
        self, tree: Tree, digester: Digester, threads: int, use: Callable[[ReadBatch], None],
        room: int = 0, *, beside: bool = True,
    ) -> None:  # fmt: skip
        self.arena_len = max(_ARENA, tree.chunk_size)
        self._batch, self._other = ReadBatch(self.arena_len), ReadBatch(self.arena_len)
        self._tree, self._digester, self._threads = tree, digester, threads
        self._use, self._room, self._beside = use, room, beside
        self._using = Background()
        self._top, self._paths = b"", ffi.NULL  # of files that are opened by their paths

    def add_all(
        self, source: Source, files: Sequence[int], progress: Progress | None = None
    ) -> None:
        """All data of ``files``, rows."""
        done, total = 0, 0
        if progress is not None:
            total = sum(self._tree.size[row] for row in files)
        add = self._add_at if source.top is None else self._add_paths
        for size in add(source, files):
            done += size
            if progress is not None:
                progress(done, total)
        self.finish()

    def finish(self) -> None:
        """Use what is left, and wait until all was used."""
        self._flush()
        self._using.finish()

    def add_data(
        self, row: int, at: int, length: int, read: Callable[[memoryview], None], off: int = 0
    ) -> None:
        """``length`` bytes at ``at`` of the file in ``row``, one chunk; ``read`` fills them in.
        ``off``: where they are in the source, for ``use``."""
        chunk = self._next(row, at, length)
        chunk.fd, chunk.off = lib.RAFS_FD_NONE, off
        start = chunk.at
        read(memoryview(ffi.buffer(self._batch.arena + start, length)))

    def _add_at(self, source: Source, files: Sequence[int]) -> Iterator[int]:
        """Bytes, as they are added."""
        step = self._tree.chunk_size
        for row in files:
            fd, start = source.data_at(self._tree.extent_at(row))
            size = self._tree.size[row]
            for at in range(0, size, step):
                chunk = self._next(row, at, min(step, size - at))
                chunk.fd, chunk.off = fd, start + at
            yield size

    def _add_paths(self, source: Source, files: Sequence[int]) -> Iterator[int]:
        """The same; the path of a file is put together where it is opened, in C."""
        assert source.top is not None
        self._flush()
        cut = ffi.new("struct rafs_cut *")
        cut.room, cut.arena_len = self._room, self.arena_len
        rows = files if isinstance(files, array) else array("I", files)
        with (
            self._tree.in_c("size", "parent", "names", "name_off") as tree,
            column_in_c(rows) as numbers,
        ):
            self._top, self._paths = source.top, tree
            while True:
                batch = self._batch
                batch.count = lib.rafs_build_cut(
                    tree, numbers, len(rows), cut, batch.chunks, MAX_BATCH
                )
                if not batch.count:
                    break
                last = batch.chunks[batch.count - 1]
                batch.used = last.at + max(last.len, self._room)
                self._flush()
                yield batch.used
            self._top, self._paths = b"", ffi.NULL

    def _next(self, row: int, at: int, length: int) -> Any:
        room = max(length, self._room)
        batch = self._batch
        if batch.used + room > self.arena_len or batch.count == MAX_BATCH:
            self._flush()
            batch = self._batch
        chunk = batch.chunks[batch.count]
        chunk.len, chunk.at, chunk.file_off, chunk.row = length, batch.used, at, row
        chunk.is_file = length == self._tree.size[row]
        batch.used += room
        batch.count += 1
        return chunk

    def _flush(self) -> None:
        batch = self._batch
        if not batch.count:
            return
        rc = lib.rafs_build_read(
            batch.chunks, batch.count, self._top, self._paths, batch.arena, self.arena_len,
            self._digester, self._threads,
        )  # fmt: skip
        if rc:
            raise self._error(batch, rc)
        if self._beside:
            self._using.start(lambda: self._use(batch))
        else:
            self._use(batch)
        self._batch, self._other = self._other, batch
        self._batch.clear()

    def path_of(self, batch: ReadBatch, i: int) -> str:
        """Of the file of chunk ``i``, for a message."""
        return os.fsdecode(self._tree.path(batch.chunks[i].row))

    def _error(self, batch: ReadBatch, rc: int) -> Exception:
        for i in range(batch.count):
            error = -batch.chunks[i].error
            if error:
                path = self.path_of(batch, i)
                return BuildError(f"{path}: {os.strerror(error)} while it was read")
        return OSError(-rc, os.strerror(-rc))

    def close(self) -> None:
        """Give the arenas back; ``use`` mostly refers to us, and that cycle would keep them."""
        self._using.close()
        del self._use, self._batch, self._other
