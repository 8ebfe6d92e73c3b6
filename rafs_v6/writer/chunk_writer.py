"""File data become chunks of a blob: read, digested, deduplicated, compressed in C, in batches.

Memory is four arenas whatever the tree's size, plus a record per chunk: one is read
into, one is compressed into another, one is written.  Compressed bytes leave in chunk
index order, so the same tree gives the same bytes however many threads work.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from rafs_v6._writer import ffi, lib
from rafs_v6.format.erofs import (
    ChunkFlags,
    ChunkRecord,
)
from rafs_v6.writer.background import Background
from rafs_v6.writer.blob_chunks import BlobChunks
from rafs_v6.writer.cct import pack_batch
from rafs_v6.writer.chunk_reader import MAX_BATCH, ChunkReader, ReadBatch, new_arena
from rafs_v6.writer.cipher import looks_padded
from rafs_v6.writer.errors import BuildError
from rafs_v6.writer.options import ChunkOptions, Progress
from rafs_v6.writer.sources.source import Source
from rafs_v6.writer.tree import Tree


@dataclass(frozen=True, slots=True)
class _Members:
    """The (chunk, location) of a unit; ``batched``: also when it is only one."""

    batched: bool
    chunks: list[tuple[int, int]]


class _ChunkWriter:
    """Chunks that were read: new ones are compressed and written, the others found again.

    What is compressed as one is a unit: a chunk, or a batch, which ends with
    its arena at the latest.
    """

    def __init__(
        self, tree: Tree, source: Source, options: ChunkOptions, out: BlobChunks,
        write: Callable[[Any], None],
    ) -> None:  # fmt: skip
        self._tree, self._out, self._batch_size = tree, out, options.batch_size
        self._options = ffi.new("struct rafs_write_options *")
        self._contexts = ffi.gc(lib.rafs_contexts_new(), lib.rafs_contexts_free)
        self._options.contexts = self._contexts
        self._options.compressor, self._options.level = options.compressor, options.level
        self._options.threads = options.threads
        self._flags = ChunkFlags.HAS_CRC32C
        out.features |= options.features
        if options.cipher is not None:
            self._flags |= ChunkFlags.ENCRYPTED
            self._options.encrypt = 1
            self._options.key, self._options.iv = options.cipher.key, options.cipher.iv
        self.reader = ChunkReader(
            tree, source, options.digester, options.threads, self._process,
            room=lib.RAFS_BUILD_ROOM if options.cipher else 0,
        )  # fmt: skip
        self._units = ffi.new("struct rafs_write_unit[]", MAX_BATCH)
        self._write, self._writing = write, Background()
        self._compressed, self._written = (new_arena(self.reader.arena_len) for _ in range(2))

    def _process(self, batch: ReadBatch) -> None:
        packed = self._pack(batch)
        compressed = self._compressed
        size = lib.rafs_build_store(
            self._units, len(packed), batch.arena, compressed, self.reader.arena_len, self._options
        )
        if size == -errno.EILSEQ:
            raise self._looks_padded(batch, packed)
        if size < 0:
            raise OSError(-size, os.strerror(-size))
        for i, members in enumerate(packed):
            self._record(batch, self._units[i], members)
        self._writing.start(lambda: self._write(ffi.buffer(compressed, size)))
        self._compressed, self._written = self._written, compressed

    def run(self, files: Sequence[int], progress: Progress | None) -> None:
        try:
            self.reader.add_all(files, progress)
            self._writing.finish()
        finally:
            self.reader.close()
            self._writing.close()

    def _looks_padded(self, batch: ReadBatch, packed: list[_Members]) -> BuildError:
        path = "a file"
        for i, members in enumerate(packed):
            unit = self._units[i]
            if unit.len == lib.RAFS_BUILD_ROOM:
                data = bytes(ffi.buffer(batch.arena + unit.at, unit.len))
                if looks_padded(data):
                    path = self.reader.path_of(batch, members.chunks[0][0])
                    break
        return BuildError(
            f"{path}: 18 bytes that end as if encryption had padded them, and would be read back"
            " cut: the format cannot hold them encrypted; build without --encrypt"
        )

    def _pack(self, batch: ReadBatch) -> list[_Members]:
        """Fill ``_units`` with the chunks that are new."""
        packed: list[_Members] = []
        arena, limit = batch.arena, self._batch_size
        for i, (row, _) in enumerate(batch.users):
            chunk = batch.chunks[i]
            location = self._out.take(chunk, self._tree, row)
            if location is None:
                continue
            small = chunk.len == self._tree.size[row] and 2 * chunk.len < limit
            if small and packed and packed[-1].batched:
                unit = self._units[len(packed) - 1]
                if unit.len + chunk.len < limit:
                    # Copies, which are not stored, and room may lie between the two.
                    ffi.memmove(arena + (unit.at + unit.len), arena + chunk.at, chunk.len)
                    unit.len += chunk.len
                    packed[-1].chunks.append((i, location))
                    continue
            unit = self._units[len(packed)]
            unit.at, unit.len = chunk.at, chunk.len
            packed.append(_Members(small, [(i, location)]))
        return packed

    def _record(self, batch: ReadBatch, unit: Any, members: _Members) -> None:
        out, locations, inside = self._out, self._out.locations, 0
        flags, clen, coff = self._flags, unit.clen, out.compressed_size
        if members.batched:
            clen = 0
        elif unit.compressed:
            flags |= ChunkFlags.COMPRESSED
        for i, location in members.chunks:
            chunk = batch.chunks[i]
            record = ChunkRecord(
                bytes(chunk.digest), 0, flags, clen, chunk.len, coff, locations.flat[location],
                batch.users[i][1], locations.index[location], chunk.crc32c,
            )  # fmt: skip
            out.add(record, inside if members.batched else None)
            inside += chunk.len
        if members.batched:
            out.contexts += pack_batch(unit.clen, unit.len)
            out.context_count += 1
        out.compressed_size += unit.clen


def write_chunks(
    tree: Tree, source: Source, out: BlobChunks, options: ChunkOptions,
    write: Callable[[Any], None], first: Sequence[int] = (),
    progress: Progress | None = None,
) -> None:  # fmt: skip
    """Cut the files of ``tree`` that are not stored yet; hand the compressed bytes to ``write``.

    The files at or below the rows of ``first``, to prefetch, come before all others.

    Raises ``BuildError`` when a file shrinks meanwhile, ``OSError`` of opening and writing.
    """
    early = chain.from_iterable(tree.below(row) for row in first)
    files = tree.unread(chain(early, range(len(tree))))
    _ChunkWriter(tree, source, options, out, write).run(files, progress)
