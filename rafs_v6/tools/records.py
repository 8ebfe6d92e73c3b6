"""The chunks of a bootstrap as its chunk table has them."""

from __future__ import annotations

from rafs_v6.format.erofs import ChunkRecord
from rafs_v6.reader.bootstrap import Bootstrap

ChunkKey = tuple[int, int]  # blob index, chunk index


def records_by_chunk(bootstrap: Bootstrap) -> dict[ChunkKey, ChunkRecord]:
    """Empty where the table says nothing of chunks (tarfs)."""
    if any(info.is_tarfs for info in bootstrap.blobs):
        return {}
    return {(r.blob_index, r.index): r for _, r in bootstrap.chunk_records()}
