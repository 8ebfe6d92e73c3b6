"""The chunks of a blob that is being built: records, chunk map and sizes, in index order."""

from __future__ import annotations

from array import array
from typing import Any

from rafs_v6._writer import ffi, lib
from rafs_v6.format.erofs import (
    CHUNK_RECORD_SIZE,
    EROFS_BLOCK,
    MAX_CHUNKS,
    BlobFeatures,
    ChunkFlags,
    ChunkRecord,
    ChunkV2Flags,
    Compressor,
    round_up,
)
from rafs_v6.values import dataclass, field, replace
from rafs_v6.writer.cct import pack_batch, pack_v1, pack_v2, too_large_for_v2
from rafs_v6.writer.chunk_index import ChunkIndex
from rafs_v6.writer.chunk_records import ChunkRecords
from rafs_v6.writer.errors import BuildError
from rafs_v6.writer.locations import ChunkLocations
from rafs_v6.writer.spill import Spill
from rafs_v6.writer.tree import NONE, Tree, column_in_c

_V2 = BlobFeatures.CHUNK_INFO_V2


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
    cct: Spill = field(default_factory=Spill)
    contexts: bytearray = field(default_factory=bytearray)
    context_count: int = 0
    features: int = 0  # BlobFeatures
    original: Original | None = None
    flat_size: int = 0
    compressed_size: int = 0
    _count: int = 0
    _recorded_flat: int = 0  # of the chunks that have a record
    _numbers: Any = None
    _found: array[int] = field(default_factory=lambda: array("I"))  # locations, by number in known

    def __post_init__(self) -> None:
        self._found.extend(NONE for _ in range(len(self.known.locations)))

    def whole_cct(self) -> bytearray:
        """The uncompressed CCT, contexts and all."""
        out = self.cct.whole()
        out += self.contexts
        return out

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
            return self._add_location(size), True
        location = self._found[number]
        return (self._location_of_known(number) if location == NONE else location), False

    def _add_location(self, size: int) -> int:
        if self._count >= MAX_CHUNKS - 1:
            raise _too_many_chunks()
        location = self.locations.add(self.blob, self._count, self.flat_size)
        self._found.append(location)
        self._count += 1
        self.flat_size += round_up(size, EROFS_BLOCK)
        return location

    def _location_of_known(self, number: int) -> int:
        known = self.known.locations
        location = self.locations.add(*known.key(number), known.flat[number])
        self._found[number] = location
        return location

    def take_all(self, chunks: Any, count: int, tree: Tree) -> array[int]:
        """Append ``count`` chunks (``struct rafs_read_chunk[]``) to the files in their rows.

        Returns those that are new, by their numbers in ``chunks``.
        """
        if self._numbers is None or len(self._numbers) < count:
            self._numbers = ffi.new("uint32_t[]", count)
        self.known.numbers(chunks, count, self._numbers)
        if len(self.known.locations):
            for number in ffi.unpack(self._numbers, count):
                if number < len(self._found) and self._found[number] == NONE:
                    self._location_of_known(number)
        room = bytes(4 * count)
        which, index, flat = array("I", room), array("I", room), array("Q", 2 * room)
        rows, firsts, refs = array("I", room), array("I", room), array("I", room)
        ends = ffi.new("struct rafs_locations *")
        ends.nfound, ends.next = len(self._found), len(self.locations)
        ends.next_index, ends.next_flat = self._count, self.flat_size
        self._found.frombytes(room)
        with (
            column_in_c(self._found) as ends.found, column_in_c(index) as ends.index,
            column_in_c(flat) as ends.flat, column_in_c(rows) as ends.first_row,
            column_in_c(firsts) as ends.first_ref, column_in_c(refs) as out,
            column_in_c(which) as new,
        ):  # fmt: skip
            made = lib.rafs_build_locate(chunks, count, self._numbers, ends, out, new)
        del self._found[ends.nfound :]
        self._count, self.flat_size = ends.next_index, ends.next_flat
        if self._count > MAX_CHUNKS - 1:
            raise _too_many_chunks()
        at, start = tree.at, len(tree.refs)  # others may add rows to the tree meanwhile
        for row, ref in zip(rows[: ends.nfirst], firsts, strict=False):
            at[row] = start + ref
        tree.refs += refs
        self.locations.extend(self.blob, index[:made], flat[:made])
        return which[:made]

    def add_new(
        self, chunks: Any, which: array[int], unit_of: array[int], units: Any, count: int
    ) -> None:
        """The records of the chunks ``which``, that ``take_all`` called new, in ``count`` units."""
        n = len(which)
        table, v2 = bytearray(CHUNK_RECORD_SIZE * n), bool(self.features & _V2)
        cct = bytearray((24 if v2 else 16) * n)
        end = ffi.new("struct rafs_blob_end *")
        end.index, end.contexts = len(self.records), self.context_count
        end.flat_size, end.compressed_size = self._recorded_flat, self.compressed_size
        end.v2, end.encrypted = v2, bool(self.features & BlobFeatures.ENCRYPTED)
        rc = lib.rafs_build_records(
            chunks, ffi.from_buffer("uint32_t[]", which), ffi.from_buffer("uint32_t[]", unit_of),
            n, units, end, ffi.from_buffer("uint8_t[]", table), ffi.from_buffer("uint8_t[]", cct),
        )  # fmt: skip
        if rc:
            raise too_large_for_v2()
        self.records.extend(table)
        self.cct.append(cct)
        if end.contexts != self.context_count:
            for i in range(count):
                if units[i].batched:
                    self.contexts += pack_batch(units[i].clen, units[i].len)
        self.context_count, self._recorded_flat = end.contexts, end.flat_size
        self.compressed_size = end.compressed_size

    def add(self, record: ChunkRecord, inside: int | None = None) -> None:
        """The next chunk's record.  ``inside``: where it is in the batch that is being filled."""
        if inside is None:
            self.records.append(record)
        else:
            # The chunk table does not say where a batch lies (format.md 1.17).
            self.records.append(replace(record, compressed_offset=0))
        if not self.features & BlobFeatures.CHUNK_INFO_V2:
            self.cct.append(pack_v1(record))
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
        self.cct.append(pack_v2(record, flags, data))


def _too_many_chunks() -> BuildError:
    return BuildError("a blob holds at most 2^24-1 chunks; choose a larger --chunk-size")
