"""The superblocks and the tables of a bootstrap, checked field by field as they are read.

Costs at most one pass over the tables.  Refuses what nydusd's reader refuses
(format sheet 1.2 - 1.5), and every table that does not lie inside the file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from rafs_v6.erofs import (
    CHUNK_RECORD_SIZE,
    DEVICE_SLOTS_OFFSET,
    EROFS_BLOCK,
    EROFS_SUPER_MAGIC_V1,
    EROFS_SUPER_OFFSET,
    MAX_BLOBS,
    MAX_CHUNK_SIZE,
    MAX_CHUNKS,
    MIN_CHUNK_SIZE,
    RAFS_DEVT_SLOTOFF,
    RAFS_V5_MAGIC,
    RAFS_V6_COMPAT,
    RAFS_V6_INCOMPAT,
    SUPER_FLAGS_COMPRESSION,
    SUPER_FLAGS_HASH,
    SUPER_FLAGS_PRESERVED,
    BlobFeatures,
    BlobRecord,
    Cipher,
    Compressor,
    DeviceSlot,
    Digester,
    ExtSuperBlock,
    SuperBlock,
    SuperFlags,
)
from rafs_v6.errors import ImageError, UnsupportedImage

_MIN_SIZE = 2 * EROFS_BLOCK
_FLAT_MAX = 1 << 44
_STORED_MAX = 1 << 40
_KNOWN_LOW_FEATURES = 0x0FFF
_ALIGN_PREFETCH = 8
_TAR_HEADER = 512
_INLINED_ID = b"x" * 64


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """One record of the blob table, with what follows from it.

    Sizes and offsets in bytes.  ``meta_blob_id`` is the object that holds CCT,
    TOC and digests: the blob itself, or for ref images a small one of its own.
    ``data_size``: where the stored chunk data end (sheet 2.9).
    """

    index: int
    blob_id: str
    meta_blob_id: str
    chunk_size: int
    chunk_count: int
    compressor: Compressor
    digester: Digester
    features: BlobFeatures
    compressed_size: int
    uncompressed_size: int
    ci_compressor: Compressor
    ci_offset: int
    ci_compressed_size: int
    ci_uncompressed_size: int
    toc_size: int
    toc_digest: bytes
    device_blocks: int
    cipher: Cipher
    key: bytes
    iv: bytes

    @property
    def is_tarfs(self) -> bool:
        return bool(self.features & BlobFeatures.TARFS)

    @property
    def is_separate(self) -> bool:
        return bool(self.features & BlobFeatures.SEPARATE)

    @property
    def is_encrypted(self) -> bool:
        return self.cipher is not Cipher.NONE

    @property
    def data_size(self) -> int:
        features = self.features
        if self.is_separate or self.is_tarfs or not features & BlobFeatures.CAP_TAR_TOC:
            return self.compressed_size
        header = _TAR_HEADER if features & BlobFeatures.HAS_TAR_HEADER else 0
        return max(0, self.ci_offset - header)


@dataclass(frozen=True, slots=True)
class Tables:
    """All that a bootstrap says before its tree."""

    super_block: SuperBlock
    ext: ExtSuperBlock
    flags: SuperFlags
    blobs: tuple[BlobInfo, ...]
    prefetch_nids: tuple[int, ...]
    chunk_table: memoryview

    @property
    def block_size(self) -> int:
        return 1 << self.super_block.blkszbits


def _check(condition: object, message: str) -> None:
    if not condition:
        raise ImageError(message)


def read_tables(data: memoryview) -> Tables:
    """Raises ``ImageError``; ``UnsupportedImage`` for RAFS v5 and features that we do not know."""
    if len(data) >= 8 and struct.unpack_from("<I", data)[0] == RAFS_V5_MAGIC:
        raise UnsupportedImage("a RAFS v5 bootstrap; only v6 can be read: convert the image to v6")
    _check(len(data) >= _MIN_SIZE, f"{len(data)} bytes are no RAFS v6 bootstrap: truncated?")
    sb = SuperBlock.unpack(data, EROFS_SUPER_OFFSET)
    ext = ExtSuperBlock.unpack(data, EROFS_SUPER_OFFSET + SuperBlock.SIZE)
    flags = _check_superblocks(sb, ext, len(data))
    blobs = _read_blobs(data, sb, ext, flags)
    return Tables(sb, ext, flags, blobs, _read_prefetch(data, ext), _chunk_table(data, ext))


def _check_superblocks(sb: SuperBlock, ext: ExtSuperBlock, size: int) -> SuperFlags:
    _check(
        sb.magic == EROFS_SUPER_MAGIC_V1,
        f"wrong magic {sb.magic:#010x} at 1024, an EROFS image has {EROFS_SUPER_MAGIC_V1:#x}",
    )
    if not sb.feature_compat & RAFS_V6_COMPAT:
        raise UnsupportedImage("an EROFS image, but not RAFS v6 (feature_compat lacks its bit)")
    if sb.feature_incompat != RAFS_V6_INCOMPAT:
        raise UnsupportedImage(f"feature_incompat {sb.feature_incompat:#x}, RAFS v6 has 0xc")
    _check(sb.checksum == 0, "superblock checksum is not 0")
    _check(sb.blkszbits in (9, 12), f"block size 2^{sb.blkszbits}, it must be 512 or 4096")
    _check(sb.sb_extslots == 0 and sb.u1 == 0, "superblock extension fields are not 0")
    _check(sb.inos != 0, "inos is 0")
    _check(sb.xattr_blkaddr == 0, "xattr_blkaddr is not 0: RAFS has no shared xattrs")
    _check(sb.devt_slotoff == RAFS_DEVT_SLOTOFF, f"devt_slotoff is {sb.devt_slotoff}, not 11")
    _check(sb.extra_devices <= MAX_BLOBS, f"{sb.extra_devices} devices, at most {MAX_BLOBS}")
    _check(size % (1 << sb.blkszbits) == 0, f"size {size} is no multiple of the block: truncated?")
    _check(sb.meta_blkaddr << sb.blkszbits <= size, "meta_blkaddr lies outside: truncated?")

    known = sum(SuperFlags) | SUPER_FLAGS_PRESERVED
    if ext.flags & ~known:
        raise UnsupportedImage(f"superblock flags {ext.flags & ~known:#x} are not known")
    flags = SuperFlags(ext.flags & sum(SuperFlags))
    _check(
        sum(bool(flags & f) for f in SUPER_FLAGS_COMPRESSION) == 1,
        f"superblock flags {ext.flags:#x} do not name exactly one compressor",
    )
    _check(
        sum(bool(flags & f) for f in SUPER_FLAGS_HASH) == 1,
        f"superblock flags {ext.flags:#x} do not name exactly one digester",
    )
    tarfs = bool(flags & SuperFlags.TARFS_MODE)
    _check(tarfs == (sb.blkszbits == 9), "512-byte blocks and tarfs mode go together")
    _check(_is_chunk_size(ext.chunk_size), f"chunk size {ext.chunk_size:#x}")
    return flags


def _is_chunk_size(size: int) -> bool:
    return MIN_CHUNK_SIZE <= size <= MAX_CHUNK_SIZE and size & (size - 1) == 0


def _table(
    data: memoryview, name: str, offset: int, size: int, entry: int, align: int
) -> memoryview:
    _check(size % entry == 0, f"{name}: size {size} is no multiple of {entry}")
    _check(offset >= EROFS_BLOCK and offset % align == 0, f"{name}: offset {offset:#x}")
    _check(
        offset <= len(data) and size <= len(data) - offset,
        f"{name}: {size} bytes at {offset:#x} lie outside the file of {len(data)} bytes",
    )
    return data[offset : offset + size]


def _read_blobs(
    data: memoryview, sb: SuperBlock, ext: ExtSuperBlock, flags: SuperFlags
) -> tuple[BlobInfo, ...]:
    table = _table(
        data, "blob table", ext.blob_table_offset, ext.blob_table_size, BlobRecord.SIZE, EROFS_BLOCK
    )
    count = len(table) // BlobRecord.SIZE
    _check(
        count == sb.extra_devices, f"{count} blob records and {sb.extra_devices} device slots"
    )
    slots_end = DEVICE_SLOTS_OFFSET + count * DeviceSlot.SIZE
    _check(
        slots_end <= ext.blob_table_offset or not count, "device slots and blob table overlap"
    )
    blobs = []
    for i in range(count):
        slot = DeviceSlot.unpack(data, DEVICE_SLOTS_OFFSET + i * DeviceSlot.SIZE)
        record = BlobRecord.unpack(table, i * BlobRecord.SIZE)
        blobs.append(_blob(i, record, slot, sb, ext, flags))
    ids = [blob.blob_id for blob in blobs]
    _check(len(set(ids)) == len(ids), "two blobs have the same id")
    _check(
        ext.chunk_table_size == 0
        or ext.chunk_table_offset >= ext.blob_table_offset + ext.blob_table_size
        or ext.chunk_table_offset + ext.chunk_table_size <= ext.blob_table_offset,
        "chunk table and blob table overlap",
    )
    return tuple(blobs)


def _blob(
    index: int,
    r: BlobRecord,
    slot: DeviceSlot,
    sb: SuperBlock,
    ext: ExtSuperBlock,
    flags: SuperFlags,
) -> BlobInfo:
    where = f"blob {index}"
    blob_id = _text(r.blob_id, f"{where}: id")
    tag = _text(slot.tag, f"device slot {index}: tag")
    _check(tag == blob_id, f"{where}: device tag {tag!r} and blob id {blob_id!r} differ")
    _check(r.blob_index == index, f"{where}: says that it is blob {r.blob_index}")
    _check(r.chunk_size == ext.chunk_size, f"{where}: chunk size {r.chunk_size:#x}")
    _check(r.chunk_count <= MAX_CHUNKS, f"{where}: {r.chunk_count} chunks")
    _check(
        r.compression_algo in Compressor._value2member_map_
        and r.ci_compressor in Compressor._value2member_map_,
        f"{where}: compressor {r.compression_algo} or {r.ci_compressor} is not known",
    )
    _check(
        r.digest_algo in Digester._value2member_map_,
        f"{where}: digester {r.digest_algo} is not known",
    )
    _check(
        r.cipher_algo in Cipher._value2member_map_, f"{where}: cipher {r.cipher_algo} is not known"
    )
    features = BlobFeatures(r.features & sum(BlobFeatures))
    _check_features(where, r, features, bool(flags & SuperFlags.TARFS_MODE))
    _check_sizes(where, r, features)
    blocks = r.uncompressed_size >> sb.blkszbits
    _check(slot.blocks != 0, f"device slot {index}: 0 blocks")
    _check(
        slot.blocks == blocks,
        f"device slot {index}: {slot.blocks} blocks, the blob table says {blocks}",
    )
    encrypted = r.cipher_algo != Cipher.NONE
    _check(
        encrypted == bool(features & BlobFeatures.ENCRYPTED),
        f"{where}: cipher and feature disagree",
    )
    separate = features & BlobFeatures.SEPARATE and any(r.blob_meta_digest)
    return BlobInfo(
        index=index,
        blob_id=blob_id,
        meta_blob_id=r.blob_meta_digest.hex() if separate and not encrypted else blob_id,
        chunk_size=r.chunk_size,
        chunk_count=r.chunk_count,
        compressor=Compressor(r.compression_algo),
        digester=Digester(r.digest_algo),
        features=features,
        compressed_size=r.compressed_size,
        uncompressed_size=r.uncompressed_size,
        ci_compressor=Compressor(r.ci_compressor),
        ci_offset=r.ci_offset,
        ci_compressed_size=r.ci_compressed_size,
        ci_uncompressed_size=r.ci_uncompressed_size,
        toc_size=r.blob_toc_size,
        toc_digest=r.blob_toc_digest,
        device_blocks=slot.blocks,
        cipher=Cipher(r.cipher_algo),
        key=r.blob_meta_digest if encrypted else b"",
        iv=struct.pack("<2Q", r.blob_meta_size, r.cipher_iv) if encrypted else b"",
    )


def _text(raw: bytes, what: str) -> str:
    value = raw.rstrip(b"\0")
    _check(value and b"\0" not in value, f"{what} is empty or has a NUL inside")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise ImageError(f"{what} is not UTF-8") from None


def _check_features(where: str, r: BlobRecord, f: BlobFeatures, tarfs: bool) -> None:
    if r.features & 0xFFFF & ~_KNOWN_LOW_FEATURES or f & BlobFeatures.INTERNAL_V5:
        raise UnsupportedImage(f"{where}: features {r.features:#x} are not known")
    if f & BlobFeatures.EXTERNAL:
        raise UnsupportedImage(f"{where} is external: its data lie in another backend")
    _check(tarfs != bool(f & BlobFeatures.ALIGNED), f"{where}: ALIGNED does not fit the image")
    _check(tarfs == bool(f & BlobFeatures.TARFS), f"{where}: TARFS does not fit the image")
    special = f & (BlobFeatures.BATCH | BlobFeatures.ZRAN | BlobFeatures.ENCRYPTED)
    v2 = bool(f & BlobFeatures.CHUNK_INFO_V2)
    _check(v2 or not special, f"{where}: {special!r} needs CHUNK_INFO_V2")
    if tarfs or f & BlobFeatures.IS_CHUNKDICT_GENERATED:
        return
    record = 24 if v2 else 16
    size = r.chunk_count * record
    right = r.ci_uncompressed_size >= size if special else r.ci_uncompressed_size == size
    _check(right, f"{where}: {r.ci_uncompressed_size} bytes of CCT for {r.chunk_count} chunks")
    _check(r.chunk_count, f"{where} has no chunks")


def _check_sizes(where: str, r: BlobRecord, f: BlobFeatures) -> None:
    _check(r.uncompressed_size <= _FLAT_MAX, f"{where}: {r.uncompressed_size} bytes of data")
    _check(r.compressed_size <= _STORED_MAX, f"{where}: {r.compressed_size} stored bytes")
    _check(r.ci_offset <= _STORED_MAX, f"{where}: CCT at {r.ci_offset:#x}")
    # 16 MiB chunks of 24 + 40 bytes at most
    _check(
        r.ci_uncompressed_size <= MAX_CHUNKS * 64 + (1 << 30),
        f"{where}: {r.ci_uncompressed_size} bytes of CCT",
    )
    # encryption pads units of less than 16 bytes to 18
    least = 18 if f & BlobFeatures.ENCRYPTED else 0
    _check(
        r.ci_compressed_size <= max(r.ci_uncompressed_size, least),
        f"{where}: the compressed CCT is larger than the plain one",
    )
    if f & BlobFeatures.ALIGNED:
        _check(
            r.uncompressed_size % EROFS_BLOCK == 0,
            f"{where}: {r.uncompressed_size} bytes of data are no whole blocks",
        )


def _read_prefetch(data: memoryview, ext: ExtSuperBlock) -> tuple[int, ...]:
    if not ext.prefetch_table_size or not ext.prefetch_table_offset:
        return ()
    table = _table(
        data,
        "prefetch table",
        ext.prefetch_table_offset,
        ext.prefetch_table_size,
        4,
        _ALIGN_PREFETCH,
    )
    nids = [nid for (nid,) in struct.iter_unpack("<I", table)]
    return tuple(nids[: nids.index(0)] if 0 in nids else nids)


def _chunk_table(data: memoryview, ext: ExtSuperBlock) -> memoryview:
    if not ext.chunk_table_size:
        return data[:0]
    return _table(
        data,
        "chunk table",
        ext.chunk_table_offset,
        ext.chunk_table_size,
        CHUNK_RECORD_SIZE,
        EROFS_BLOCK,
    )


def is_inlined_id(blob_id: str) -> bool:
    """Does the record stand for the object that its bootstrap was found in (sheet 2.9)?"""
    return blob_id.encode() == _INLINED_ID
