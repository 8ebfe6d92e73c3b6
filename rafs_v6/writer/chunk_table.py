"""The chunk table of a bootstrap: all records, sorted by digest and blob (format.md 1.17).

Memory is one part of the table, whatever its size: the records are gone through once for each.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

from rafs_v6._writer import ffi, lib
from rafs_v6.format.erofs import CHUNK_RECORD_SIZE
from rafs_v6.writer.chunk_records import ChunkRecords
from rafs_v6.writer.spill import Spill

PART = 4 << 20  # bytes that are sorted at a time
_KINDS = 1 << 16  # of digests, by their first two bytes


def chunk_table(blobs: Sequence[ChunkRecords]) -> Spill:
    """``blobs``: the records of each, in the order of the blob table; one of each digest of a blob
    is kept, that with the highest index."""
    counts = array("I", bytes(4 * _KINDS))
    with ffi.from_buffer("uint32_t[]", counts) as room:
        for records in blobs:
            for piece in records.pieces():
                lib.rafs_build_count(_bytes(piece), len(piece) // CHUNK_RECORD_SIZE, room)
    table = Spill(CHUNK_RECORD_SIZE)
    for low, high, count in _parts(counts):
        part = bytearray(count * CHUNK_RECORD_SIZE)
        with ffi.from_buffer("uint8_t[]", part) as out:
            kept = _select(blobs, low, high, out)
            kept = lib.rafs_build_sort_table(out, kept)
        with memoryview(part) as sorted_part:
            table.append(sorted_part[: kept * CHUNK_RECORD_SIZE])
    return table


def _parts(counts: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Kinds [low, high) of at most ``PART`` bytes, if more than one, and how many records."""
    whole = sum(counts)
    if 0 < whole * CHUNK_RECORD_SIZE <= PART:  # of most images, and the rest takes 9 ms
        yield 0, len(counts), whole
        return
    low = total = 0
    for kind, count in enumerate(counts):
        if total and (total + count) * CHUNK_RECORD_SIZE > PART:
            yield low, kind, total
            low, total = kind, 0
        total += count
    if total:
        yield low, len(counts), total


def _select(blobs: Sequence[ChunkRecords], low: int, high: int, out: Any) -> int:
    count = 0
    for number, records in enumerate(blobs):
        for piece in records.pieces():
            size = len(piece) // CHUNK_RECORD_SIZE
            at = out + count * CHUNK_RECORD_SIZE
            count += lib.rafs_build_select(_bytes(piece), size, number, low, high, at)
    return count


def _bytes(data: bytes | bytearray) -> Any:
    return ffi.from_buffer("uint8_t[]", data)
