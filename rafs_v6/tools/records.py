"""The chunks of a bootstrap as its chunk table has them."""

from __future__ import annotations

from collections.abc import Iterator

from rafs_v6.bootstrap import Bootstrap
from rafs_v6.erofs import CHUNK_RECORD_SIZE, ChunkRecord

ChunkKey = tuple[int, int]  # blob index, chunk index


def chunk_records(bootstrap: Bootstrap) -> Iterator[tuple[int, ChunkRecord]]:
    """(byte of the bootstrap, record)."""
    base = bootstrap.tables.ext.chunk_table_offset
    for at in range(0, len(bootstrap.chunk_table), CHUNK_RECORD_SIZE):
        yield base + at, ChunkRecord.unpack(bootstrap.chunk_table, at)


def records_by_chunk(bootstrap: Bootstrap) -> dict[ChunkKey, ChunkRecord]:
    """Empty where the table says nothing of chunks (tarfs)."""
    if any(info.is_tarfs for info in bootstrap.blobs):
        return {}
    return {(r.blob_index, r.index): r for _, r in chunk_records(bootstrap)}
