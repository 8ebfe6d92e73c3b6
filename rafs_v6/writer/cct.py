"""The compression context table: where each chunk of a blob is stored (format.md 2.3 - 2.6)."""

from __future__ import annotations

import struct

from rafs_v6.format.erofs import (
    CCT_HEADER_SIZE,
    CCT_MAGIC,
    CctHeader,
    ChunkRecord,
    ChunkV2Flags,
    Compressor,
)
from rafs_v6.writer.errors import BuildError

_COMPRESSED_MAX_V2 = (1 << 24) - 1


def pack_v1(c: ChunkRecord) -> bytes:
    """A chunk's record, version 1 (format.md 2.4)."""
    return struct.pack(
        "<2Q",
        c.uncompressed_offset | _size_bits(c.uncompressed_size, 8),
        c.compressed_offset | _size_bits(c.compressed_size, 40),
    )


def _size_bits(size: int, high_at: int) -> int:
    size -= 1
    return (size & 0xFFFFF) << 44 | (size >> 20) << high_at


def pack_v2(c: ChunkRecord, flags: ChunkV2Flags, data: int) -> bytes:
    """A chunk's record, version 2 (format.md 2.5): ``data`` is its last word.

    Raises ``BuildError`` for 16 MiB compressed, a size that only version 1 can say.
    """
    if c.compressed_size > _COMPRESSED_MAX_V2:
        raise too_large_for_v2()
    return struct.pack(
        "<3Q",
        c.uncompressed_offset >> 12 | c.uncompressed_size - 1 << 32 | flags << 56,
        c.compressed_offset | c.compressed_size << 40,
        data,
    )


def too_large_for_v2() -> BuildError:
    return BuildError(
        "a chunk of 16 MiB that does not shrink: the format cannot hold it in a tar that is"
        " referred to, nor with --batch-size or --encrypt; use --chunk-size 0x800000 or less"
    )


def pack_batch(compressed: int, uncompressed: int) -> bytes:
    """The context of a batch: its bytes in the blob, and those of its chunks (format.md 2.6)."""
    return struct.pack("<2I32x", compressed, uncompressed)


def cct_header(
    features: int, compressor: Compressor, count: int, offset: int, compressed: int,
    uncompressed: int, contexts: tuple[int, int, int] = (0, 0, 0),
) -> bytes:  # fmt: skip
    """``contexts``: their offset in the uncompressed CCT, their size and their number."""
    head = CctHeader(
        CCT_MAGIC, features, compressor, count, offset, compressed, uncompressed, *contexts
    ).pack()  # fmt: skip
    return head + bytes(CCT_HEADER_SIZE - len(head) - 4) + struct.pack("<I", CCT_MAGIC)
