"""File data become chunks of a blob: read, digested, deduplicated, compressed in C, in batches.

Memory is four arenas whatever the tree's size, plus a record per chunk: one is read
into, one is compressed into another, one is written.  Compressed bytes leave in chunk
index order, so the same tree gives the same bytes however many threads work.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from rafs_v6._writer import ffi, lib
from rafs_v6.writer.background import Background
from rafs_v6.writer.blob_chunks import BlobChunks
from rafs_v6.writer.chunk_reader import MAX_BATCH, ChunkReader, ReadBatch, new_arena
from rafs_v6.writer.cipher import looks_padded
from rafs_v6.writer.errors import BuildError
from rafs_v6.writer.options import ChunkOptions, Progress
from rafs_v6.writer.sources.source import Source
from rafs_v6.writer.tree import Tree, column_in_c


class ChunkWriter:
    """Chunks that were read: new ones are compressed and written, the others found again.

    What is compressed as one is a unit: a chunk, or a batch, which ends with
    its arena at the latest.
    """

    def __init__(
        self, tree: Tree, options: ChunkOptions, out: BlobChunks, write: Callable[[Any], None]
    ) -> None:
        self._tree, self._out, self._batch_size = tree, out, options.batch_size
        self._options = ffi.new("struct rafs_write_options *")
        self._contexts = ffi.gc(lib.rafs_contexts_new(), lib.rafs_contexts_free)
        self._options.contexts = self._contexts
        self._options.compressor, self._options.level = options.compressor, options.level
        self._options.threads = options.threads
        out.features |= options.features
        if options.cipher is not None:
            self._options.encrypt = 1
            self._options.key, self._options.iv = options.cipher.key, options.cipher.iv
        self.reader = ChunkReader(
            tree, options.digester, options.threads, self._process,
            room=lib.RAFS_BUILD_ROOM if options.cipher else 0,
        )  # fmt: skip
        self._units = ffi.new("struct rafs_write_unit[]", MAX_BATCH)
        self._write, self._writing = write, Background()
        self._compressed, self._written = (new_arena(self.reader.arena_len) for _ in range(2))

    def finish(self) -> None:
        """Wait until all chunks were written."""
        self.reader.finish()
        self._writing.finish()

    def close(self) -> None:
        self.reader.close()
        self._writing.close()

    def _process(self, batch: ReadBatch) -> None:
        which, unit_of, count = self._pack(batch)
        compressed = self._compressed
        size = lib.rafs_build_store(
            self._units, count, batch.arena, compressed, self.reader.arena_len, self._options
        )
        if size == -errno.EILSEQ:
            raise self._looks_padded(batch, which, unit_of)
        if size < 0:
            raise OSError(-size, os.strerror(-size))
        self._out.add_new(batch.chunks, which, unit_of, self._units, count)
        self._writing.start(lambda: self._write(ffi.buffer(compressed, size)))
        self._compressed, self._written = self._written, compressed

    def _looks_padded(
        self, batch: ReadBatch, which: Sequence[int], unit_of: Sequence[int]
    ) -> BuildError:
        path = "a file"
        for i, number in zip(which, unit_of, strict=True):
            unit = self._units[number]
            if unit.len == lib.RAFS_BUILD_ROOM:
                data = bytes(ffi.buffer(batch.arena + unit.at, unit.len))
                if looks_padded(data):
                    path = self.reader.path_of(batch, i)
                    break
        return BuildError(
            f"{path}: 18 bytes that end as if encryption had padded them, and would be read back"
            " cut: the format cannot hold them encrypted; build without --encrypt"
        )

    def _pack(self, batch: ReadBatch) -> tuple[array[int], array[int], int]:
        """Fill ``_units`` with the chunks that are new: which they are, the unit of each, and how
        many units there are."""
        which = self._out.take_all(batch.chunks, batch.count, self._tree)
        unit_of = array("I", bytes(4 * len(which)))
        with column_in_c(which) as chunks, column_in_c(unit_of) as units:
            count = lib.rafs_build_pack(
                batch.chunks, chunks, len(which), self._batch_size, batch.arena, self._units, units
            )
        return which, unit_of, count


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
    files = tree.unread(early)
    writer = ChunkWriter(tree, options, out, write)
    try:
        writer.reader.add_all(source, files, progress)
        writer.finish()
    finally:
        writer.close()
