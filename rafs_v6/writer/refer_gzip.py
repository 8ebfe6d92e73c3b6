"""Images that refer to a tar.gz, made while it arrives: nothing but the blob is written.

Every chunk lies in a zran context: so much of the deflate stream, from a point where inflating can
start, as its bytes need (format.md 2.7).  Where those end is known when the next such point has
been read; until then a chunk waits.  Memory is two arenas, and what waits.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import IO

from rafs_v6.errors import shown
from rafs_v6.format.erofs import (
    EROFS_BLOCK,
    MAX_CHUNK_SIZE,
    BlobFeatures,
    ChunkFlags,
    ChunkRecord,
    ChunkV2Flags,
    Compressor,
    round_up,
)
from rafs_v6.values import dataclass, replace
from rafs_v6.writer.blob_chunks import BlobChunks, Original
from rafs_v6.writer.cct import pack_v2
from rafs_v6.writer.chunk_reader import ChunkReader, ReadBatch
from rafs_v6.writer.create import Created
from rafs_v6.writer.errors import SourceError
from rafs_v6.writer.options import ChunkOptions, CreateOptions
from rafs_v6.writer.refer import reference_to
from rafs_v6.writer.sources.tar_file import GzipPoint, GzipStream
from rafs_v6.writer.sources.tar_members import Member
from rafs_v6.writer.stream import create_from_stream
from rafs_v6.writer.tree import Tree

# Uncompressed bytes after which a context takes no further chunk: a cold read inflates no more.
_CONTEXT_MAX = 2 << 20
_MAX_INPUT = 2 * MAX_CHUNK_SIZE  # what a reader takes for one context (csrc/codec/chunkmap.c)
_MAX_V2_SIZE = (1 << 24) - 1


def create_from_gzip(
    stream: IO[bytes], first: bytes, options: CreateOptions, *, estargz: bool = False
) -> Created:
    """``first`` was read of ``stream`` already.

    Raises ``SourceError`` for a bad tar or a damaged gzip stream, ``OSError`` of reading.
    """
    tar = GzipStream(stream, first)
    try:
        return create_from_stream(
            tar, lambda: tar.size, options, estargz=estargz,
            fill=lambda tree, chunks: _Refer(tree, options.chunks, chunks, tar),
        )  # fmt: skip
    finally:
        tar.close()


@dataclass(slots=True)
class _Context:
    start: GzipPoint
    in_len: int = 0
    out_len: int = 0


@dataclass(slots=True)
class _Waiting:
    """A record without what the end of its input says: ``off`` in the tar; where inflating
    starts, and what it needs there."""

    record: ChunkRecord
    off: int
    start: GzipPoint
    window: bytes


class _Refer:
    """See ``stream.Filler``."""

    def __init__(
        self, tree: Tree, options: ChunkOptions, out: BlobChunks, tar: GzipStream
    ) -> None:
        self._tree, self._out, self._tar = tree, out, tar
        self._reader = ChunkReader(
            tree, options.digester, options.threads, self._process, beside=False
        )
        self._starts: list[tuple[GzipPoint, bytes]] = []  # of the chunks that are being read
        self._waiting: deque[_Waiting] = deque()
        self._contexts: list[_Context] = []
        self._windows = bytearray()

    def add(self, row: int, member: Member, read: Callable[[memoryview], None]) -> None:
        if member.sparse is not None:
            raise SourceError(
                f"{shown(member.name)}: a sparse file, whose data an image cannot refer to; choose"
                " a type that stores them: tar-rafs, targz-rafs"
            )
        step = self._tree.chunk_size
        for at in range(0, member.size, step):
            self._add(row, at, min(step, member.size - at), read, member.offset + at)

    def _add(
        self, row: int, at: int, length: int, read: Callable[[memoryview], None], off: int
    ) -> None:
        def read_all(view: memoryview) -> None:
            read(view[:1])  # then no other point comes before it
            self._starts.append(self._tar.start_at(off))
            read(view[1:])

        self._reader.add_data(row, at, length, read_all, off)

    def finish(self) -> None:
        self._reader.finish()
        self._settle()
        out, tar = self._out, self._tar
        out.features = BlobFeatures.CHUNK_INFO_V2 | BlobFeatures.SEPARATE | BlobFeatures.ZRAN
        dict_off = 0
        for c in self._contexts:
            p = c.start
            out.contexts += struct.pack(
                "<3Q3I2BH", p.in_off, p.out_off, dict_off, c.in_len, c.out_len, p.window,
                p.byte, p.bits, 0,
            )  # fmt: skip
            dict_off += p.window
        out.contexts += self._windows
        out.context_count = len(self._contexts)
        out.original = Original(tar.sha256, tar.size, Compressor.GZIP)

    def close(self) -> None:
        self._reader.close()

    def _process(self, batch: ReadBatch) -> None:
        starts, self._starts = self._starts, []
        flat, index = self._out.flat_size, len(self._out.records) + len(self._waiting)
        for i in self._out.take_all(batch.chunks, batch.count, self._tree):
            chunk, (start, window) = batch.chunks[i], starts[i]
            _check_reach(start, chunk.off + chunk.len)  # its end may be far
            record = reference_to(chunk, index, start.in_off, 0, flat)
            record = replace(record, flags=record.flags | ChunkFlags.COMPRESSED)
            self._waiting.append(_Waiting(record, chunk.off, start, window))
            flat += round_up(chunk.len, EROFS_BLOCK)
            index += 1
        self._settle()

    def _settle(self) -> None:
        """Record those whose input ends in what was read."""
        out = self._out
        while self._waiting:
            chunk = self._waiting[0]
            end = chunk.off + chunk.record.uncompressed_size
            behind = self._tar.behind(end)
            if behind is None:
                break
            self._waiting.popleft()
            number, off = self._in_context(chunk, end, behind.end_off)
            size = min(behind.end_off - chunk.start.in_off, _MAX_V2_SIZE)
            record = replace(chunk.record, compressed_size=size)
            out.records.append(record)
            flags = ChunkV2Flags.ZRAN | ChunkV2Flags.COMPRESSED
            out.cct.append(pack_v2(record, flags, number << 32 | off))

    def _in_context(self, chunk: _Waiting, end: int, end_off: int) -> tuple[int, int]:
        """The number of its context, and where it is in that."""
        if not self._contexts or end - self._contexts[-1].start.out_off > _CONTEXT_MAX:
            self._contexts.append(_Context(chunk.start))
            self._windows += chunk.window
        context = self._contexts[-1]
        context.out_len = end - context.start.out_off
        context.in_len = end_off - context.start.in_off
        _check_reach(context.start, end)
        if context.in_len > _MAX_INPUT:
            raise _no_place(end)
        return len(self._contexts) - 1, chunk.off - context.start.out_off


def _check_reach(start: GzipPoint, end: int) -> None:
    if end - start.out_off > MAX_CHUNK_SIZE:
        raise _no_place(end)


def _no_place(off: int) -> SourceError:
    return SourceError(
        f"the gzip stream has no place to start from near byte {off} of the tar:"
        " choose a smaller --chunk-size, or --type targz-rafs"
    )
