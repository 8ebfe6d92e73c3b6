"""File data become chunks of a blob: read, digested, deduplicated, compressed in C, in batches.

Memory is two arenas whatever the tree's size, plus a record per chunk.  Stored
bytes leave in chunk index order, so the same tree gives the same bytes however
many threads work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from rafs_v6._build import ffi, lib
from rafs_v6.build.base import Known
from rafs_v6.build.blobfile import pack_v1
from rafs_v6.build.errors import BuildError
from rafs_v6.build.pieces import Pieces
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


@dataclass(frozen=True, slots=True)
class ChunkOptions:
    compressor: Compressor
    digester: Digester
    chunk_size: int
    level: int
    threads: int


@dataclass(frozen=True, slots=True)
class Original:
    """The tar or tar.gz that holds the data of a blob which only refers to them."""

    blob_id: str
    size: int
    compressor: Compressor


@dataclass(slots=True)
class StoredChunks:
    """The chunks of a blob: one record each, in index order (``blob_index`` unset).

    ``cct``: the same as packed records of the CCT, of version 2 when ``features``
    say so; ``contexts``: what follows them there (sheet 2.3).  ``known``: chunks that
    pieces may refer to; those of this blob are added.
    """

    blob: str
    known: Known = field(default_factory=dict)
    records: list[ChunkRecord] = field(default_factory=list)
    cct: bytearray = field(default_factory=bytearray)
    contexts: bytes = b""
    context_count: int = 0
    features: int = 0  # BlobFeatures
    original: Original | None = None
    flat_size: int = 0
    stored_size: int = 0
    _count: int = 0

    @property
    def context_place(self) -> tuple[int, int, int]:
        """The contexts' offset in the plain CCT, their size and their number."""
        if not self.context_count:
            return 0, 0, 0
        return len(self.cct), len(self.contexts), self.context_count

    def place(self, piece: Any, node: Node) -> Chunk | None:
        """Give a digested piece of ``node`` its chunk; the chunk, when there was none like it."""
        key = bytes(piece.digest), int(piece.len)
        chunk = self.known.get(key)
        piece.store = chunk is None
        fresh = None
        if chunk is None:
            if self._count >= MAX_CHUNKS - 1:
                raise BuildError("a blob holds at most 2^24-1 chunks; choose a larger --chunk-size")
            fresh = chunk = Chunk(self.blob, self._count, self.flat_size, key[1])
            self._count += 1
            self.flat_size += round_up(key[1], EROFS_BLOCK)
            self.known[key] = chunk
        node.chunks.append(chunk)
        return fresh


class _Store:
    """Pieces become chunks: new ones are compressed and written, the others found again."""

    def __init__(
        self, options: ChunkOptions, out: StoredChunks, write: Callable[[memoryview], None]
    ) -> None:
        self._options, self._out, self._write = options, out, write
        self.pieces = Pieces(options.chunk_size, options.digester, options.threads, self._process)
        self._stored = bytearray(self.pieces.arena_len)

    def _process(self) -> None:
        options, pieces, n = self._options, self.pieces, len(self.pieces)
        fresh = [self._out.place(pieces.array[i], pieces.users[i][0]) for i in range(n)]
        size = lib.rafs_build_store(
            pieces.array, n, pieces.arena, ffi.from_buffer("uint8_t[]", self._stored),
            pieces.arena_len, options.compressor, options.level, options.threads,
        )  # fmt: skip
        if size < 0:
            pieces.fail()
        for i, chunk in enumerate(fresh):
            if chunk is not None:
                self._record(i, chunk)
        self._write(memoryview(self._stored)[:size])

    def _record(self, i: int, chunk: Chunk) -> None:
        piece, out = self.pieces.array[i], self._out
        flags = ChunkFlags.HAS_CRC32C
        if piece.clen != piece.len:
            flags |= ChunkFlags.COMPRESSED
        record = ChunkRecord(
            bytes(piece.digest), 0, flags, piece.clen, piece.len, out.stored_size,
            chunk.flat_off, self.pieces.users[i][1], chunk.index, piece.crc32c,
        )  # fmt: skip
        out.records.append(record)
        out.cct += pack_v1(record)
        out.stored_size += piece.clen


def store_chunks(
    root: Node, out: StoredChunks, options: ChunkOptions, write: Callable[[memoryview], None],
    first: Sequence[Node] = (),
) -> None:  # fmt: skip
    """Cut the files below ``root`` that have an extent; hand the stored bytes to ``write``.

    The files of ``first``, nodes to prefetch, come before all others.

    Raises ``BuildError`` when a file shrinks meanwhile, ``OSError`` of opening and writing.
    """
    pieces = _Store(options, out, write).pieces
    seen: set[int] = set()
    try:
        early = chain.from_iterable(traverse(node) for node in first)
        for path, node in chain(early, traverse(root)):
            if node.extent is not None and node.size and id(node) not in seen:
                seen.add(id(node))
                pieces.add(node, path)
        pieces.flush()
    finally:
        pieces.close()
