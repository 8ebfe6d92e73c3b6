"""Images that refer to a tar or a tar.gz: its bytes are the chunks (format.md 2.1).

For a tar.gz every chunk lies in a zran context: so much of the deflate stream,
from a point where inflating can start, as its bytes need (format.md 2.7).
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Any

from rafs_v6.format.erofs import (
    EROFS_BLOCK,
    MAX_CHUNK_SIZE,
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
from rafs_v6.writer.sources.tar_file import GzipIndex, GzipPoint, TarFile
from rafs_v6.writer.tree import Tree

# Uncompressed bytes after which a context takes no further chunk: a cold read inflates no more.
_CONTEXT_MAX = 2 << 20
_MAX_INPUT = 2 * MAX_CHUNK_SIZE  # what a reader takes for one context (csrc/codec/chunkmap.c)
_MAX_V2_SIZE = (1 << 24) - 1


@dataclass(slots=True)
class _Context:
    start: GzipPoint
    in_len: int = 0
    out_len: int = 0


class _Contexts:
    """Contexts of a tar.gz, opened as chunks come in the order of the tar."""

    def __init__(self, index: GzipIndex) -> None:
        self._index = index
        self._all: list[_Context] = []

    def __len__(self) -> int:
        return len(self._all)

    def locate(self, off: int, size: int) -> tuple[int, int, int]:
        """(zran word of the chunk record, compressed offset and size) of ``size`` uncompressed
        bytes at ``off``."""
        start, end = self._index.before(off), self._index.behind(off + size)
        if not self._all or off + size - self._all[-1].start.out_off > _CONTEXT_MAX:
            self._all.append(_Context(start))
        context = self._all[-1]
        context.out_len = off + size - context.start.out_off
        context.in_len = end.end_off - context.start.in_off
        if context.out_len > MAX_CHUNK_SIZE or context.in_len > _MAX_INPUT:
            raise SourceError(
                f"the gzip stream has no place to start from near byte {off} of the tar:"
                " choose a smaller --chunk-size, or --type targz-rafs"
            )
        word = len(self._all) - 1 << 32 | off - context.start.out_off
        return word, start.in_off, min(end.end_off - start.in_off, _MAX_V2_SIZE)

    def pack(self, tar: int) -> bytes:
        """Records, then the windows, which are read back from ``tar`` (a descriptor)."""
        out = bytearray()
        dict_off = 0
        for c in self._all:
            p = c.start
            out += struct.pack(
                "<3Q3I2BH", p.in_off, p.out_off, dict_off, c.in_len, c.out_len, p.window,
                p.byte, p.bits, 0,
            )  # fmt: skip
            dict_off += p.window
        for c in self._all:
            out += os.pread(tar, c.start.window, c.start.out_off - c.start.window)
        return bytes(out)


class _Refer:
    def __init__(
        self, tree: Tree, options: ChunkOptions, out: BlobChunks, index: GzipIndex | None,
    ) -> None:  # fmt: skip
        self._tree, self._out = tree, out
        self.contexts = _Contexts(index) if index is not None else None
        self.reader = ChunkReader(
            tree, options.digester, options.threads, self._process
        )  # fmt: skip

    def _process(self, batch: ReadBatch) -> None:
        flat = self._out.flat_size
        for i in self._out.take_all(batch.chunks, batch.count, self._tree):
            self._record(batch.chunks[i], flat)
            flat += round_up(batch.chunks[i].len, EROFS_BLOCK)

    def _record(self, chunk: Any, flat: int) -> None:
        out = self._out
        if self.contexts is not None:
            word, off, size = self.contexts.locate(chunk.off, chunk.len)
            flags = ChunkV2Flags.ZRAN | ChunkV2Flags.COMPRESSED
        else:
            word, off, size = chunk.crc32c, chunk.off, chunk.len
            flags = ChunkV2Flags.CRC if word else ChunkV2Flags(0)
        record = ChunkRecord(
            bytes(chunk.digest), 0,
            ChunkFlags.HAS_CRC32C | (ChunkFlags.COMPRESSED if self.contexts is not None else 0),
            size, chunk.len, off, flat, chunk.file_off, len(out.records), chunk.crc32c,
        )  # fmt: skip
        out.records.append(record)
        out.cct.append(pack_v2(record, flags, word))


def refer_chunks(
    tree: Tree, source: Source, out: BlobChunks, options: ChunkOptions, tar: TarFile,
    progress: Progress | None = None,
) -> None:  # fmt: skip
    """The chunks of all files of ``tree`` that are not stored yet; their data lie in ``tar``."""
    refer = _Refer(tree, options, out, tar.index)
    try:
        refer.reader.add_all(source, in_tar_order(tree), progress)
    finally:
        refer.reader.close()
    out.features = BlobFeatures.CHUNK_INFO_V2 | BlobFeatures.SEPARATE
    compressor = Compressor.NONE
    if refer.contexts is not None:
        out.features |= BlobFeatures.ZRAN
        out.contexts += refer.contexts.pack(tar.file.fileno())
        out.context_count = len(refer.contexts)
        compressor = Compressor.GZIP
    out.original = Original(tar.sha256, tar.size, compressor)


def tarfs_chunks(tree: Tree, blob: str, tar: TarFile) -> BlobChunks:
    """Chunks whose flat offset is that in the tar, of 512-byte blocks; nothing is read.

    ``records`` has the last one only: without digests, all have the same key in
    the chunk table (format.md 1.17).
    """
    if tar.index is not None:
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
