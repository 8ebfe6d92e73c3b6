"""A tree, its blobs and its chunks become the bytes of a bootstrap (format.md 1.1 - 1.5, 1.17)."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Sequence

from rafs_v6.format.erofs import (
    DEVICE_SLOTS_OFFSET,
    EROFS_BLOCK,
    EROFS_SUPER_MAGIC_V1,
    EROFS_SUPER_OFFSET,
    MAX_BLOBS,
    RAFS_DEVT_SLOTOFF,
    RAFS_EXT_SUPER_OFFSET,
    RAFS_V6_COMPAT,
    RAFS_V6_INCOMPAT,
    TARFS_BLOCK,
    BlobFeatures,
    BlobRecord,
    Compressor,
    DeviceSlot,
    Digester,
    ExtSuperBlock,
    SuperBlock,
    SuperFlags,
    round_up,
)
from rafs_v6.values import dataclass, replace
from rafs_v6.writer.chunk_records import ChunkRecords
from rafs_v6.writer.chunk_table import chunk_table
from rafs_v6.writer.errors import BuildError
from rafs_v6.writer.layout import Layout
from rafs_v6.writer.tree import ROOT, Tree

_MAPPED_ALIGN = 0x80000  # lets boot and flat blobs be one device (format.md 1.4)
_COMPRESSION_FLAG = {
    Compressor.NONE: SuperFlags.COMPRESSION_NONE,
    Compressor.LZ4_BLOCK: SuperFlags.COMPRESSION_LZ4,
    Compressor.GZIP: SuperFlags.COMPRESSION_GZIP,
    Compressor.ZSTD: SuperFlags.COMPRESSION_ZSTD,
}
_HASH_FLAG = {Digester.BLAKE3: SuperFlags.HASH_BLAKE3, Digester.SHA256: SuperFlags.HASH_SHA256}


@dataclass(frozen=True, slots=True)
class BlobEntry:
    """A blob of the image: its name in ``ChunkLocations.names``, its record, its chunk records."""

    name: str
    record: BlobRecord
    chunks: ChunkRecords


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the extended superblock says of the whole file system."""

    chunk_size: int
    compressor: Compressor
    digester: Digester
    explicit_uid_gid: bool = True
    block_size: int = EROFS_BLOCK


def write_bootstrap(
    tree: Tree, blobs: Sequence[BlobEntry], defaults: Defaults, prefetch: Sequence[int] = ()
) -> Iterator[bytes | bytearray]:
    """The bytes of a bootstrap, in pieces that are made as they are asked for.

    Blob indexes in ``blobs`` are set here.  ``prefetch``: rows of the tree for the prefetch table
    (format.md 1.16), in order.
    """
    if len(blobs) > MAX_BLOBS:
        raise BuildError(
            f"{len(blobs)} blobs; a bootstrap holds at most {MAX_BLOBS}: squash layers, or compact"
        )
    ids = Counter(blob.record.blob_id for blob in blobs)
    twice = next((name for name, count in ids.items() if count > 1), None)
    if twice is not None:
        raise BuildError(
            f"a new blob would be called {twice.rstrip(bytes(1)).decode()} like one that is built"
            " upon; with equal data, use that image's --digester, else another --blob-id"
        )
    block = defaults.block_size
    table = chunk_table([blob.chunks for blob in blobs])
    layout = Layout(tree, block, {blob.name: i for i, blob in enumerate(blobs)})
    table_off = round_up(DEVICE_SLOTS_OFFSET + DeviceSlot.SIZE * len(blobs), EROFS_BLOCK)
    prefetch_off = table_off + BlobRecord.SIZE * len(blobs)
    prefetch_table = b"".join(
        struct.pack("<I", layout.nid(row)) for row in (prefetch if blobs else ())
    )
    meta_addr = round_up(prefetch_off + len(prefetch_table), EROFS_BLOCK) if blobs else 0
    chunk_table_off = meta_addr + layout.size
    size = round_up(chunk_table_off + len(table), EROFS_BLOCK)
    # Without blobs, the head lies in the empty block that the region begins with.
    out = bytearray(meta_addr or EROFS_BLOCK)
    out[EROFS_SUPER_OFFSET:RAFS_EXT_SUPER_OFFSET] = SuperBlock(
        EROFS_SUPER_MAGIC_V1, 0, RAFS_V6_COMPAT, block.bit_length() - 1, 0, layout.nid(ROOT),
        layout.inos, 0, 0,
        sum(b.record.uncompressed_size // block for b in blobs) & 0xFFFFFFFF,
        meta_addr // block, 0, bytes(16), bytes(16), RAFS_V6_INCOMPAT, 0, len(blobs),
        RAFS_DEVT_SLOTOFF, bytes(38),
    ).pack()  # fmt: skip
    ext_end = RAFS_EXT_SUPER_OFFSET + ExtSuperBlock.SIZE
    out[RAFS_EXT_SUPER_OFFSET:ext_end] = ExtSuperBlock(
        _flags(blobs, defaults, layout.has_xattr), table_off, BlobRecord.SIZE * len(blobs),
        defaults.chunk_size, chunk_table_off, len(table),
        prefetch_off if prefetch_table else 0, len(prefetch_table), 0, bytes(200),
    ).pack()  # fmt: skip
    position = size
    for i, blob in enumerate(blobs):
        record = blob.record
        blocks = record.uncompressed_size // block
        mapped = round_up(position, _MAPPED_ALIGN) // block
        position = (mapped + blocks) * block
        if mapped >= 1 << 32:
            raise BuildError("the image's data do not fit in 2^32 blocks")
        slot = DeviceSlot(record.blob_id, blocks, mapped, bytes(56)).pack()
        slot_off = DEVICE_SLOTS_OFFSET + DeviceSlot.SIZE * i
        out[slot_off : slot_off + len(slot)] = slot
        record_off = table_off + BlobRecord.SIZE * i
        packed = replace(record, blob_index=i).pack()
        out[record_off : record_off + len(packed)] = packed
    out[prefetch_off : prefetch_off + len(prefetch_table)] = prefetch_table

    def pieces() -> Iterator[bytes | bytearray]:
        region = layout.render(meta_addr)
        first = next(region)
        if not meta_addr:
            first[:EROFS_BLOCK] = out
        else:
            yield out
        yield first
        yield from region
        yield from table.pieces()
        yield bytes(size - chunk_table_off - len(table))

    return pieces()


def _flags(blobs: Sequence[BlobEntry], defaults: Defaults, has_xattr: bool) -> SuperFlags:
    flags = _COMPRESSION_FLAG[defaults.compressor] | _HASH_FLAG[defaults.digester]
    if any(b.record.features & BlobFeatures.ENCRYPTED for b in blobs):
        flags |= SuperFlags.ENCRYPTION_AES_128_XTS
    else:
        flags |= SuperFlags.ENCRYPTION_NONE
    if defaults.explicit_uid_gid:
        flags |= SuperFlags.EXPLICIT_UID_GID
    if defaults.block_size == TARFS_BLOCK:
        flags |= SuperFlags.TARFS_MODE
    if has_xattr:
        flags |= SuperFlags.HAS_XATTR
    if all(b.record.features & BlobFeatures.INLINED_CHUNK_DIGEST for b in blobs):
        flags |= SuperFlags.INLINED_CHUNK_DIGEST
    return flags
