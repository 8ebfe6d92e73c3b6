"""Chunk records kept as they are written: an object of ten fields a chunk takes five times more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rafs_v6.format.erofs import CHUNK_RECORD_SIZE, ChunkRecord
from rafs_v6.writer.spill import Spill

_DIGEST = 32


class ChunkRecords:
    """A sequence of ``ChunkRecord``, in no order but that of ``append``."""

    __slots__ = ("_packed",)

    def __init__(self, records: Iterable[ChunkRecord] = ()) -> None:
        self._packed = Spill(CHUNK_RECORD_SIZE)
        for record in records:
            self.append(record)

    def __len__(self) -> int:
        return len(self._packed) // CHUNK_RECORD_SIZE

    def __iter__(self) -> Iterator[ChunkRecord]:
        for piece in self.pieces():
            for at in range(0, len(piece), CHUNK_RECORD_SIZE):
                yield ChunkRecord.unpack(bytes(piece[at : at + CHUNK_RECORD_SIZE]))

    def append(self, record: ChunkRecord) -> None:
        self._packed.append(record.pack())

    def extend(self, packed: bytes | bytearray) -> None:
        """The same of records as they are in a chunk table."""
        self._packed.append(packed)

    def pieces(self) -> Iterator[bytes | bytearray]:
        """The records as bytes of a chunk table (1.17), so many at a time."""
        return self._packed.pieces()

    def digests(self) -> Iterator[bytes]:
        """32 bytes each, so many at a time."""
        for piece in self.pieces():
            at = range(0, len(piece), CHUNK_RECORD_SIZE)
            yield b"".join(piece[i : i + _DIGEST] for i in at)
