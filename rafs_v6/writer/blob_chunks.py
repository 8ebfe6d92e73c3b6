"""The chunks of a blob that is being built: records, chunk map and sizes, in index order."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace
from typing import Any

from rafs_v6.format.erofs import (
    EROFS_BLOCK,
    MAX_CHUNKS,
    BlobFeatures,
    ChunkFlags,
    ChunkRecord,
    ChunkV2Flags,
    Compressor,
    round_up,
)
from rafs_v6.writer.cct import pack_v1, pack_v2
from rafs_v6.writer.chunk_index import ChunkIndex
from rafs_v6.writer.chunk_records import ChunkRecords
from rafs_v6.writer.errors import BuildError
from rafs_v6.writer.locations import ChunkLocations
from rafs_v6.writer.tree import NONE, Tree


@dataclass(frozen=True, slots=True)
class Original:
    """The tar or tar.gz that holds the data of a blob which only refers to them."""

    blob_id: str
    size: int
    compressor: Compressor


@dataclass(slots=True)
class BlobChunks:
    """The chunks of a blob: one record each, in index order (``blob_index`` unset).

    ``cct``: the same as packed records of the CCT, of version 2 when ``features``
    say so; ``contexts``: what follows them there (format.md 2.3).  ``locations`` get those
    of the chunks, and of chunks of ``known`` that are the same.
    """

    blob: str
    locations: ChunkLocations
    known: ChunkIndex = field(default_factory=ChunkIndex)
    records: ChunkRecords = field(default_factory=ChunkRecords)
    cct: bytearray = field(default_factory=bytearray)
    contexts: bytearray = field(default_factory=bytearray)
    context_count: int = 0
    features: int = 0  # BlobFeatures
    original: Original | None = None
    flat_size: int = 0
    compressed_size: int = 0
    _count: int = 0
    _found: array[int] = field(default_factory=lambda: array("I"))  # locations, by number in known

    def __post_init__(self) -> None:
        self._found.extend(NONE for _ in range(len(self.known.locations)))

    @property
    def context_place(self) -> tuple[int, int, int]:
        """The contexts' offset in the uncompressed CCT, their size and their number."""
        if not self.features & (BlobFeatures.BATCH | BlobFeatures.ZRAN):
            return 0, 0, 0
        return len(self.cct), len(self.contexts), self.context_count

    def find(self, digest: Any, size: int) -> tuple[int, bool]:
        """The location of a chunk of ``size`` uncompressed bytes; is it new, to be stored now?"""
        number = self.known.number(digest, size)
        if number == len(self._found):
            if self._count >= MAX_CHUNKS - 1:
                raise BuildError("a blob holds at most 2^24-1 chunks; choose a larger --chunk-size")
            location = self.locations.add(self.blob, self._count, self.flat_size)
            self._found.append(location)
            self._count += 1
            self.flat_size += round_up(size, EROFS_BLOCK)
            return location, True
        location = self._found[number]
        if location == NONE:
            known = self.known.locations
            location = self.locations.add(*known.key(number), known.flat[number])
            self._found[number] = location
        return location, False

    def take(self, chunk: Any, tree: Tree, row: int) -> int | None:
        """Append a chunk to the file in ``row``; its location if it is new."""
        location, is_new = self.find(chunk.digest, chunk.len)
        if tree.at[row] == NONE:
            tree.at[row] = len(tree.refs)
        tree.refs.append(location)
        return location if is_new else None

    def add(self, record: ChunkRecord, inside: int | None = None) -> None:
        """The next chunk's record.  ``inside``: where it is in the batch that is being filled."""
        if inside is None:
            self.records.append(record)
        else:
            # The chunk table does not say where a batch lies (format.md 1.17).
            self.records.append(replace(record, compressed_offset=0))
        if not self.features & BlobFeatures.CHUNK_INFO_V2:
            self.cct += pack_v1(record)
            return
        flags, data = ChunkV2Flags(0), record.crc32c
        if record.flags & ChunkFlags.ENCRYPTED:
            flags |= ChunkV2Flags.ENCRYPTED
        if inside is not None:
            flags |= ChunkV2Flags.BATCH | ChunkV2Flags.COMPRESSED
            data = self.context_count << 32 | inside
        else:
            if record.flags & ChunkFlags.COMPRESSED:
                flags |= ChunkV2Flags.COMPRESSED
            # Upstream's reader takes a crc of 0 for damage.
            if record.crc32c:
                flags |= ChunkV2Flags.CRC
        self.cct += pack_v2(record, flags, data)
