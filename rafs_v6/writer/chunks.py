"""File data become chunks of a blob: read, digested, deduplicated, compressed in C, in batches.

Memory is four arenas whatever the tree's size, plus a record per chunk: one is read
into, one is compressed into another, one is written.  Compressed bytes leave in chunk
index order, so the same tree gives the same bytes however many threads work.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from rafs_v6._writer import ffi, lib
from rafs_v6.format.erofs import (
    EROFS_BLOCK,
    MAX_CHUNKS,
    BlobFeatures,
    ChunkFlags,
    ChunkRecord,
    ChunkV2Flags,
    Compressor,
    Digester,
    round_up,
)
from rafs_v6.writer.base import Known
from rafs_v6.writer.behind import Behind
from rafs_v6.writer.cct import pack_batch, pack_v1, pack_v2
from rafs_v6.writer.cipher import XtsKey, looks_padded
from rafs_v6.writer.errors import BuildError
from rafs_v6.writer.pieces import MAX_PIECES, Batch, Pieces, Progress, new_arena
from rafs_v6.writer.records import ChunkRecords
from rafs_v6.writer.sources import Source
from rafs_v6.writer.tree import NONE, Places, Tree


@dataclass(frozen=True, slots=True)
class ChunkOptions:
    """``batch_size``: files of one chunk below half of it are compressed together; 0: none."""

    compressor: Compressor
    digester: Digester
    chunk_size: int
    level: int
    threads: int
    batch_size: int = 0
    cipher: XtsKey | None = None

    @property
    def features(self) -> BlobFeatures:
        """Those of the blob that follow."""
        found = BlobFeatures(0)
        if self.batch_size:
            found |= BlobFeatures.BATCH | BlobFeatures.CHUNK_INFO_V2
        if self.cipher is not None:
            found |= BlobFeatures.ENCRYPTED | BlobFeatures.CHUNK_INFO_V2
        return found


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
    say so; ``contexts``: what follows them there (format.md 2.3).  ``places`` get those
    of the chunks, and of chunks of ``known`` that are the same.
    """

    blob: str
    places: Places
    known: Known = field(default_factory=Known)
    records: ChunkRecords = field(default_factory=ChunkRecords)
    cct: bytearray = field(default_factory=bytearray)
    contexts: bytearray = field(default_factory=bytearray)
    context_count: int = 0
    features: int = 0  # BlobFeatures
    original: Original | None = None
    flat_size: int = 0
    compressed_size: int = 0
    _count: int = 0
    _found: array[int] = field(default_factory=lambda: array("I"))  # places, by number in known

    def __post_init__(self) -> None:
        self._found.extend(NONE for _ in range(len(self.known.places)))

    @property
    def context_place(self) -> tuple[int, int, int]:
        """The contexts' offset in the uncompressed CCT, their size and their number."""
        if not self.features & (BlobFeatures.BATCH | BlobFeatures.ZRAN):
            return 0, 0, 0
        return len(self.cct), len(self.contexts), self.context_count

    def find(self, digest: Any, size: int) -> tuple[int, bool]:
        """The place of a chunk of ``size`` uncompressed bytes; is it new, to be stored now?"""
        number = self.known.number(digest, size)
        if number == len(self._found):
            if self._count >= MAX_CHUNKS - 1:
                raise BuildError("a blob holds at most 2^24-1 chunks; choose a larger --chunk-size")
            place = self.places.add(self.blob, self._count, self.flat_size)
            self._found.append(place)
            self._count += 1
            self.flat_size += round_up(size, EROFS_BLOCK)
            return place, True
        place = self._found[number]
        if place == NONE:
            known = self.known.places
            place = self.places.add(*known.key(number), known.flat[number])
            self._found[number] = place
        return place, False

    def place(self, piece: Any, tree: Tree, row: int) -> int | None:
        """Give the next piece of the file in ``row`` its chunk; its place if there was no such."""
        place, is_new = self.find(piece.digest, piece.len)
        if tree.at[row] == NONE:
            tree.at[row] = len(tree.refs)
        tree.refs.append(place)
        return place if is_new else None

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


@dataclass(frozen=True, slots=True)
class _Members:
    """The (piece, place) of a parcel; ``batched``: also when it is only one."""

    batched: bool
    chunks: list[tuple[int, int]]


class _Store:
    """Pieces become chunks: new ones are compressed and written, the others found again.

    What is compressed as one is a parcel: a chunk, or a batch, which ends with
    its arena at the latest.
    """

    def __init__(
        self, tree: Tree, source: Source, options: ChunkOptions, out: BlobChunks,
        write: Callable[[Any], None],
    ) -> None:  # fmt: skip
        self._tree, self._out, self._batch_size = tree, out, options.batch_size
        self._recipe = ffi.new("struct rafs_recipe *")
        self._contexts = ffi.gc(lib.rafs_contexts_new(), lib.rafs_contexts_free)
        self._recipe.contexts = self._contexts
        self._recipe.compressor, self._recipe.level = options.compressor, options.level
        self._recipe.threads = options.threads
        self._flags = ChunkFlags.HAS_CRC32C
        out.features |= options.features
        if options.cipher is not None:
            self._flags |= ChunkFlags.ENCRYPTED
            self._recipe.encrypt = 1
            self._recipe.key, self._recipe.iv = options.cipher.key, options.cipher.iv
        self.pieces = Pieces(
            tree, source, options.digester, options.threads, self._process,
            room=lib.RAFS_BUILD_ROOM if options.cipher else 0,
        )  # fmt: skip
        self._parcels = ffi.new("struct rafs_parcel[]", MAX_PIECES)
        self._write, self._writing = write, Behind()
        self._compressed, self._written = (new_arena(self.pieces.arena_len) for _ in range(2))

    def _process(self, batch: Batch) -> None:
        packed = self._pack(batch)
        compressed = self._compressed
        size = lib.rafs_build_store(
            self._parcels, len(packed), batch.arena, compressed, self.pieces.arena_len, self._recipe
        )
        if size == -errno.EILSEQ:
            raise self._looks_padded(batch, packed)
        if size < 0:
            raise OSError(-size, os.strerror(-size))
        for i, members in enumerate(packed):
            self._record(batch, self._parcels[i], members)
        self._writing.start(lambda: self._write(ffi.buffer(compressed, size)))
        self._compressed, self._written = self._written, compressed

    def run(self, files: Sequence[int], progress: Progress | None) -> None:
        try:
            self.pieces.add_all(files, progress)
            self._writing.finish()
        finally:
            self.pieces.close()
            self._writing.close()

    def _looks_padded(self, batch: Batch, packed: list[_Members]) -> BuildError:
        path = "a file"
        for i, members in enumerate(packed):
            parcel = self._parcels[i]
            if parcel.len == lib.RAFS_BUILD_ROOM:
                data = bytes(ffi.buffer(batch.arena + parcel.at, parcel.len))
                if looks_padded(data):
                    path = self.pieces.path_of(batch, members.chunks[0][0])
                    break
        return BuildError(
            f"{path}: 18 bytes that end as if encryption had padded them, and would be read back"
            " cut: the format cannot hold them encrypted; build without --encrypt"
        )

    def _pack(self, batch: Batch) -> list[_Members]:
        """Fill ``_parcels`` with the pieces that are new."""
        packed: list[_Members] = []
        arena, limit = batch.arena, self._batch_size
        for i, (row, _) in enumerate(batch.users):
            piece = batch.array[i]
            place = self._out.place(piece, self._tree, row)
            if place is None:
                continue
            small = piece.len == self._tree.size[row] and 2 * piece.len < limit
            if small and packed and packed[-1].batched:
                parcel = self._parcels[len(packed) - 1]
                if parcel.len + piece.len < limit:
                    # Copies, which are not stored, and room may lie between the two.
                    ffi.memmove(arena + (parcel.at + parcel.len), arena + piece.at, piece.len)
                    parcel.len += piece.len
                    packed[-1].chunks.append((i, place))
                    continue
            parcel = self._parcels[len(packed)]
            parcel.at, parcel.len = piece.at, piece.len
            packed.append(_Members(small, [(i, place)]))
        return packed

    def _record(self, batch: Batch, parcel: Any, members: _Members) -> None:
        out, places, inside = self._out, self._out.places, 0
        flags, clen, coff = self._flags, parcel.clen, out.compressed_size
        if members.batched:
            clen = 0
        elif parcel.compressed:
            flags |= ChunkFlags.COMPRESSED
        for i, place in members.chunks:
            piece = batch.array[i]
            record = ChunkRecord(
                bytes(piece.digest), 0, flags, clen, piece.len, coff, places.flat[place],
                batch.users[i][1], places.index[place], piece.crc32c,
            )  # fmt: skip
            out.add(record, inside if members.batched else None)
            inside += piece.len
        if members.batched:
            out.contexts += pack_batch(parcel.clen, parcel.len)
            out.context_count += 1
        out.compressed_size += parcel.clen


def store_chunks(
    tree: Tree, source: Source, out: BlobChunks, options: ChunkOptions,
    write: Callable[[Any], None], first: Sequence[int] = (),
    progress: Progress | None = None,
) -> None:  # fmt: skip
    """Cut the files of ``tree`` that are not stored yet; hand the compressed bytes to ``write``.

    The files at or below the rows of ``first``, to prefetch, come before all others.

    Raises ``BuildError`` when a file shrinks meanwhile, ``OSError`` of opening and writing.
    """
    early = chain.from_iterable(tree.below(row) for row in first)
    files = tree.unread(chain(early, range(len(tree))))
    _Store(tree, source, options, out, write).run(files, progress)
