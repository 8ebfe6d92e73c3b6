"""Images that refer to a tar: its bytes are the chunks (format.md 2.1)."""

from __future__ import annotations

from typing import Any

from rafs_v6.format.erofs import (
    EROFS_BLOCK,
    MAX_CHUNKS,
    TARFS_BLOCK,
    BlobFeatures,
    ChunkFlags,
    ChunkRecord,
    ChunkV2Flags,
    Compressor,
    round_up,
)
from rafs_v6.writer.blob_chunks import BlobChunks, Original
from rafs_v6.writer.cct import pack_v2
from rafs_v6.writer.chunk_reader import ChunkReader, ReadBatch
from rafs_v6.writer.errors import BuildError, SourceError
from rafs_v6.writer.options import ChunkOptions, Progress
from rafs_v6.writer.sources.source import Source
from rafs_v6.writer.sources.tar_file import TarFile
from rafs_v6.writer.tree import Tree


class _Refer:
    def __init__(self, tree: Tree, options: ChunkOptions, out: BlobChunks) -> None:
        self._tree, self._out = tree, out
        self.reader = ChunkReader(
            tree, options.digester, options.threads, self._process
        )  # fmt: skip

    def _process(self, batch: ReadBatch) -> None:
        flat = self._out.flat_size
        for i in self._out.take_all(batch.chunks, batch.count, self._tree):
            chunk = batch.chunks[i]
            word = chunk.crc32c
            flags = ChunkV2Flags.CRC if word else ChunkV2Flags(0)
            record = reference_to(chunk, len(self._out.records), chunk.off, chunk.len, flat)
            self._out.records.append(record)
            self._out.cct.append(pack_v2(record, flags, word))
            flat += round_up(chunk.len, EROFS_BLOCK)


def reference_to(chunk: Any, index: int, off: int, size: int, flat: int) -> ChunkRecord:
    """The record of ``struct rafs_read_chunk``, which lies at ``off`` of the object in ``size``
    bytes."""
    return ChunkRecord(
        bytes(chunk.digest), 0, ChunkFlags.HAS_CRC32C, size, chunk.len, off, flat,
        chunk.file_off, index, chunk.crc32c,
    )  # fmt: skip


def refer_chunks(
    tree: Tree, source: Source, out: BlobChunks, options: ChunkOptions, tar: TarFile,
    progress: Progress | None = None,
) -> None:  # fmt: skip
    """The chunks of all files of ``tree`` that are not stored yet; their data lie in ``tar``."""
    refer = _Refer(tree, options, out)
    try:
        refer.reader.add_all(source, in_tar_order(tree), progress)
    finally:
        refer.reader.close()
    out.features = BlobFeatures.CHUNK_INFO_V2 | BlobFeatures.SEPARATE
    out.original = Original(tar.sha256, tar.size, Compressor.NONE)


def tarfs_chunks(tree: Tree, blob: str, tar: TarFile) -> BlobChunks:
    """Chunks whose flat offset is that in the tar, of 512-byte blocks; nothing is read.

    ``records`` has the last one only: without digests, all have the same key in
    the chunk table (format.md 1.17).
    """
    if tar.is_gzip:
        raise SourceError("a tar.gz cannot be mounted as it is: choose --type targz-ref")
    if tar.size % TARFS_BLOCK:
        raise SourceError(f"the tar is no whole number of blocks: {tar.size} bytes")
    out = BlobChunks(blob, tree.locations, features=BlobFeatures.TARFS, flat_size=tar.size)
    count = 0
    for row in in_tar_order(tree):
        tree.at[row] = len(tree.refs)
        for at in range(0, tree.size[row], tree.chunk_size):
            off, size = tree.extent_at(row) + at, min(tree.chunk_size, tree.size[row] - at)
            tree.refs.append(tree.locations.add(blob, count, off))
            last = ChunkRecord(bytes(32), 0, ChunkFlags(0), size, size, off, off, at, count, 0)
            count += 1
    if count:
        out.records.append(last)
    if count >= MAX_CHUNKS:
        raise BuildError("an image holds at most 2^24-1 chunks; choose a larger --chunk-size")
    return out


def in_tar_order(tree: Tree) -> list[int]:
    """The rows of files that have data, as their data follow each other in the tar."""
    return sorted(tree.unread(), key=tree.extent_at)
