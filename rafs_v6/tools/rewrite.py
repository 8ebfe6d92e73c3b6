"""Chunks of an image are copied into a new blob: what ``compact`` and ``optimize`` share.

A chunk that is stored alone, by the compressor that the new blob has, keeps its
compressed bytes; others are compressed anew.  All are decoded and verified first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rafs_v6._codec import ffi, lib
from rafs_v6.format.erofs import (
    BlobFeatures,
    BlobRecord,
    ChunkFlags,
    ChunkRecord,
    Compressor,
)
from rafs_v6.reader.blobs import Blobs
from rafs_v6.reader.chunkmap import ChunkMap
from rafs_v6.reader.image import Image
from rafs_v6.reader.stream import Batch, UnitReader, grouped
from rafs_v6.tools.blobs import open_image
from rafs_v6.tools.records import ChunkKey
from rafs_v6.values import dataclass
from rafs_v6.writer.blob_chunks import BlobChunks
from rafs_v6.writer.blob_file import BlobFile, shrink, write_atomically
from rafs_v6.writer.bootstrap import BlobEntry, Defaults, write_bootstrap
from rafs_v6.writer.cipher import XtsKey, looks_padded
from rafs_v6.writer.errors import BuildError
from rafs_v6.writer.load import Loaded, load
from rafs_v6.writer.locations import ChunkLocations
from rafs_v6.writer.options import ChunkOptions, CreateOptions
from rafs_v6.writer.prefetch import prefetch_rows
from rafs_v6.writer.trailer import write_trailer
from rafs_v6.writer.tree import Tree, used_names

_ALONE = lib.RAFS_UNIT_BATCH | lib.RAFS_UNIT_ZRAN | lib.RAFS_UNIT_ENCRYPTED
_LEVEL = 3


@dataclass(slots=True)
class Rewrite:
    """An image on its way to a new bootstrap.  ``entries``: blobs by name, new ones are added."""

    image: Image
    blobs: Blobs
    tree: Tree
    entries: dict[str, BlobEntry]
    defaults: Defaults
    prefetch: Sequence[bytes]
    threads: int = 0

    @classmethod
    def open(cls, path: Path, blobs: Blobs, *, threads: int = 0) -> Rewrite:
        loaded: Loaded = load(path)
        image, named = open_image(path, blobs)
        names = dict.fromkeys(image.bootstrap.prefetch_nids, b"")
        for name, inode in image.walk():
            if names.get(inode.nid) == b"":
                names[inode.nid] = name
        return cls(
            image, named, loaded.tree, dict(loaded.blobs), loaded.defaults,
            [name for name in names.values() if name], threads,
        )  # fmt: skip

    def indexes(self) -> dict[str, int]:
        """Of the image's blobs in its blob table, by name; new blobs are counted on."""
        return {name: i for i, name in enumerate(self.entries)}

    def move(
        self, chunks: Iterable[int], files: Iterable[int], directory: Path, *,
        features: int = 0, digest_is_id: bool = False,
    ) -> str:  # fmt: skip
        """Copy ``chunks``, given as locations, into one new blob in ``directory``, in their order.

        ``files``, rows, refer to the copies then.  Returns the new blob's id.  ``features``:
        more of ``BlobFeatures`` for it.  ``digest_is_id``: for a registry, which knows an object
        by its sha256; a table of contents would bring an array that ids do not cover.

        Copies of encrypted chunks are encrypted, and those of others beside them.
        """
        index, tree = self.indexes(), self.tree

        def key(location: int) -> ChunkKey:
            blob, number = tree.locations.key(location)
            return index.get(blob, -1), number

        wanted = list(dict.fromkeys(key(location) for location in chunks))
        infos = [self.image.bootstrap.blobs[i] for i in dict.fromkeys(i for i, _ in wanted)]
        compressor = infos[0].compressor
        options = ChunkOptions(
            # Nobody stores gzip chunks anew.
            Compressor.ZSTD if compressor is Compressor.GZIP else compressor,
            infos[0].digester, self.defaults.chunk_size, _LEVEL, self.threads,
            cipher=XtsKey.random() if any(info.is_encrypted for info in infos) else None,
        )  # fmt: skip
        toc = not digest_is_id and all(
            i.features & BlobFeatures.INLINED_CHUNK_DIGEST for i in infos
        )
        new_chunks = BlobChunks("", ChunkLocations(), features=features | options.features)
        out = BlobFile(directory / "new")
        try:
            copies = self._copy(wanted, new_chunks, options, out.write)
            record: list[BlobRecord] = []

            def remember(own: BlobRecord) -> tuple[bytes, ...]:
                record.append(own)
                return ()

            create = CreateOptions(options, None, None, directory, toc=toc)
            _, name, blob_id = write_trailer(out, new_chunks, create, remember)
            out.publish(directory / name)
        finally:
            out.discard()
        self.entries[blob_id] = BlobEntry(blob_id, record[-1], new_chunks.records)
        new: dict[int, int] = {}  # locations, by those in new_chunks
        for row in files:
            at = tree.at[row]
            for i, location in enumerate(tree.chunks(row)):
                copy = copies.get(key(location))
                if copy is None:
                    continue
                if copy not in new:
                    made = new_chunks.locations
                    index_in_blob, flat = made.index[copy], made.flat[copy]
                    new[copy] = tree.locations.add(blob_id, index_in_blob, flat)
                tree.refs[at + i] = new[copy]
        return blob_id

    def write(self, target: Path, *, last: str | None = None) -> list[str]:
        """The new bootstrap; the ids of the blobs that it still uses, ``last`` at the end."""
        ids = used_names(self.tree, self.entries)
        if last in ids:
            ids = [i for i in ids if i != last] + [last]
        first = prefetch_rows(self.tree, self.prefetch)
        boot = write_bootstrap(self.tree, [self.entries[i] for i in ids], self.defaults, first)
        write_atomically(target, boot)
        return ids

    def _copy(
        self, wanted: Sequence[ChunkKey], out: BlobChunks, options: ChunkOptions,
        write: Callable[[bytes], object],
    ) -> dict[ChunkKey, int]:  # fmt: skip
        members: dict[tuple[int, int], list[int]] = {}
        for blob, chunk in wanted:
            unit = self.image.chunk_map(blob).blob.chunks[chunk].unit
            members.setdefault((blob, unit), []).append(chunk)
        units = ((self.image.chunk_map(blob), unit) for blob, unit in members)
        copies: dict[ChunkKey, int] = {}
        for batch in UnitReader(self.blobs.read_at, self.threads).batches(grouped(units)):
            batch.require()
            for i, (chunks, unit) in enumerate(batch.units):
                blob = chunks.info.index
                for number in members[blob, unit]:
                    copies[blob, number] = _store(batch, i, number, out, options, write)
        return copies


def _store(
    batch: Batch, i: int, number: int, out: BlobChunks, options: ChunkOptions,
    write: Callable[[bytes], object],
) -> int:  # fmt: skip
    chunks, unit_number = batch.units[i]
    source, unit = chunks.blob.chunks[number], chunks.unit(unit_number)
    uncompressed = bytes(batch.uncompressed(i)[source.unit_off : source.unit_off + source.usize])
    digest = _digest(chunks, number, uncompressed, options)
    copy, is_new = out.find(digest, len(uncompressed))
    if not is_new:
        return copy
    alone = not unit.flags & _ALONE
    if alone and chunks.info.compressor is options.compressor:
        data = batch.compressed(i)
    elif alone and not unit.flags & lib.RAFS_UNIT_COMPRESSED:
        data = uncompressed
    else:
        data = bytes(shrink(options.compressor, uncompressed)[1])
    flags = ChunkFlags.HAS_CRC32C
    if options.cipher is not None:
        if looks_padded(data):
            data = uncompressed
        if looks_padded(data):
            raise BuildError(f"chunk {number} of {chunks.info.blob_id} cannot be encrypted")
    if len(data) != len(uncompressed):
        flags |= ChunkFlags.COMPRESSED
    if options.cipher is not None:
        flags |= ChunkFlags.ENCRYPTED
        data = options.cipher.encrypt(data)
    record = ChunkRecord(
        digest, 0, flags, len(data), len(uncompressed), out.compressed_size,
        out.locations.flat[copy], 0, out.locations.index[copy],
        lib.rafs_crc32c(uncompressed, len(uncompressed)),
    )  # fmt: skip
    out.add(record)
    out.compressed_size += len(data)
    write(data)
    return copy


def _digest(chunks: ChunkMap, number: int, uncompressed: bytes, options: ChunkOptions) -> bytes:
    source = chunks.blob.chunks[number]
    if source.flags & lib.RAFS_CHUNK_HAS_DIGEST and chunks.info.digester is options.digester:
        return bytes(source.digest)
    out = ffi.new("uint8_t[32]")
    lib.rafs_digest(options.digester, uncompressed, len(uncompressed), out)
    return bytes(out)
