"""Chunk records kept as they are written: an object of ten fields a chunk takes five times more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rafs_v6.format.erofs import CHUNK_RECORD_SIZE, ChunkRecord

_DIGEST = 32


class ChunkRecords:
    """A sequence of ``ChunkRecord``; ``packed``: the same as bytes of a chunk table (1.17)."""

    __slots__ = ("packed",)

    def __init__(self, records: Iterable[ChunkRecord] = ()) -> None:
        self.packed = bytearray()
        for record in records:
            self.append(record)

    def __len__(self) -> int:
        return len(self.packed) // CHUNK_RECORD_SIZE

    def __iter__(self) -> Iterator[ChunkRecord]:
        for at in range(0, len(self.packed), CHUNK_RECORD_SIZE):
            yield ChunkRecord.unpack(bytes(self.packed[at : at + CHUNK_RECORD_SIZE]))

    def append(self, record: ChunkRecord) -> None:
        self.packed += record.pack()

    def digests(self) -> bytes:
        """32 bytes each."""
        at = range(0, len(self.packed), CHUNK_RECORD_SIZE)
        return b"".join(self.packed[i : i + _DIGEST] for i in at)
