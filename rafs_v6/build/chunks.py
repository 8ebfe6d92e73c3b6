"""File data become chunks of a blob: read, digested, deduplicated, compressed in C, in batches.

Memory is two arenas of ``_ARENA`` bytes whatever the tree's size, plus a record
per chunk.  Stored bytes leave in chunk index order, so the same tree gives the
same bytes however many threads work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from rafs_v6._build import ffi, lib
from rafs_v6.build.errors import BuildError
from rafs_v6.build.tree import Chunk, Node, traverse
from rafs_v6.erofs import (
    EROFS_BLOCK,
    MAX_CHUNKS,
    ChunkFlags,
    ChunkRecord,
    Compressor,
    Digester,
    round_up,
)

_ARENA = 16 << 20
_PIECES = 512  # also bounds the descriptors that are open at once


@dataclass(frozen=True, slots=True)
class ChunkOptions:
    compressor: Compressor
    digester: Digester
    chunk_size: int
    level: int
    threads: int


@dataclass(slots=True)
class StoredChunks:
    """What ``store_chunks`` wrote: one record a chunk, in index order (``blob_index`` unset)."""

    blob: str
    records: list[ChunkRecord] = field(default_factory=list)
    flat_size: int = 0
    stored_size: int = 0


class _Batch:
    """Pieces that share an arena and go through C together."""

    def __init__(
        self, options: ChunkOptions, out: StoredChunks, write: Callable[[memoryview], None]
    ) -> None:
        self._options, self._out, self._write = options, out, write
        self._arena_len = max(_ARENA, options.chunk_size)
        self._in = bytearray(self._arena_len)
        self._stored = bytearray(self._arena_len)
        self._pieces = ffi.new("struct rafs_piece[]", _PIECES)
        self._users: list[tuple[Node, int, bytes]] = []
        self._fds: list[int] = []
        self._used = 0
        self._known: dict[tuple[bytes, int], Chunk] = {}

    def add(self, node: Node, path: bytes) -> None:
        extent = node.extent
        assert extent is not None
        chunk_size = self._options.chunk_size
        fd = extent.fd
        for at in range(0, node.size, chunk_size):
            length = min(chunk_size, node.size - at)
            if self._used + length > self._arena_len or len(self._users) == _PIECES:
                self.flush()
                if extent.fd < 0:
                    fd = -1
            if fd < 0:
                fd = os.open(extent.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                self._fds.append(fd)
            piece = self._pieces[len(self._users)]
            piece.fd, piece.len = fd, length
            piece.off, piece.at = extent.off + at, self._used
            self._used += length
            self._users.append((node, at, path))

    def flush(self) -> None:
        try:
            if self._users:
                self._process()
        finally:
            self.close()
            self._users.clear()
            self._used = 0

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def _process(self) -> None:
        options, n = self._options, len(self._users)
        arena = ffi.from_buffer("uint8_t[]", self._in)
        stored = ffi.from_buffer("uint8_t[]", self._stored)
        rc = lib.rafs_build_read(
            self._pieces, n, arena, self._arena_len, options.digester, options.threads
        )
        if rc:
            self._fail()
        fresh = [self._place(i) for i in range(n)]
        size = lib.rafs_build_store(
            self._pieces, n, arena, stored, self._arena_len,
            options.compressor, options.level, options.threads,
        )  # fmt: skip
        if size < 0:
            self._fail()
        for i in range(n):
            if fresh[i] is not None:
                self._record(i, fresh[i])
        self._write(memoryview(self._stored)[:size])

    def _fail(self) -> None:
        for i, (_, _, path) in enumerate(self._users):
            error = -self._pieces[i].error
            if error:
                raise BuildError(f"{os.fsdecode(path)}: {os.strerror(error)} while it was read")

    def _place(self, i: int) -> Chunk | None:
        """Give piece ``i`` its chunk; the chunk, when it is not a copy of an earlier one."""
        piece, (node, _, _) = self._pieces[i], self._users[i]
        key = bytes(piece.digest), int(piece.len)
        chunk = self._known.get(key)
        piece.store = chunk is None
        fresh = None
        if chunk is None:
            out = self._out
            index = len(self._known)
            if index >= MAX_CHUNKS - 1:
                raise BuildError("a blob holds at most 2^24-1 chunks; choose a larger --chunk-size")
            fresh = chunk = Chunk(out.blob, index, out.flat_size, key[1])
            out.flat_size += round_up(key[1], EROFS_BLOCK)
            self._known[key] = chunk
        node.chunks.append(chunk)
        return fresh

    def _record(self, i: int, chunk: Chunk | None) -> None:
        assert chunk is not None
        piece, out = self._pieces[i], self._out
        flags = ChunkFlags.HAS_CRC32C
        if piece.clen != piece.len:
            flags |= ChunkFlags.COMPRESSED
        out.records.append(
            ChunkRecord(
                bytes(piece.digest), 0, flags, piece.clen, piece.len, out.stored_size,
                chunk.flat_off, self._users[i][1], chunk.index, piece.crc32c,
            )
        )  # fmt: skip
        out.stored_size += piece.clen


def store_chunks(
    root: Node, blob: str, options: ChunkOptions, write: Callable[[memoryview], None],
    first: Sequence[Node] = (),
) -> StoredChunks:  # fmt: skip
    """Cut all regular files below ``root`` and hand the stored bytes to ``write``.

    The files of ``first``, nodes to prefetch, come before all others.

    Raises ``BuildError`` when a file shrinks meanwhile, ``OSError`` of opening and writing.
    """
    out = StoredChunks(blob)
    batch = _Batch(options, out, write)
    seen: set[int] = set()
    try:
        early = chain.from_iterable(traverse(node) for node in first)
        for path, node in chain(early, traverse(root)):
            if node.is_reg and node.size and id(node) not in seen:
                seen.add(id(node))
                batch.add(node, path)
        batch.flush()
    finally:
        batch.close()
    return out
