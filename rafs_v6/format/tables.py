"""The superblocks and the tables of a bootstrap, checked field by field as they are read.

Costs at most one pass over the tables.  Refuses what nydusd's reader refuses
(format.md 1.2 - 1.5), and every table that does not lie inside the file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from rafs_v6.errors import ImageError, UnsupportedImage, shown
from rafs_v6.faults import STRICT, Checks
from rafs_v6.format.erofs import (
    CHUNK_RECORD_SIZE,
    DEVICE_SLOTS_OFFSET,
    EROFS_BLOCK,
    EROFS_FEATURE_COMPAT_MTIME,
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

_MIN_SIZE = 2 * EROFS_BLOCK
_FLAT_MAX = 1 << 44
_COMPRESSED_MAX = 1 << 40
_KNOWN_LOW_FEATURES = 0x0FFF
_ALIGN_PREFETCH = 8
_TAR_HEADER = 512
_INLINED_ID = b"x" * 64
_EXT_OFFSET = EROFS_SUPER_OFFSET + SuperBlock.SIZE
_SPECIAL = BlobFeatures.BATCH | BlobFeatures.ZRAN | BlobFeatures.ENCRYPTED
_COMPRESSORS: dict[int, Compressor] = {c.value: c for c in Compressor}
_DIGESTERS: dict[int, Digester] = {d.value: d for d in Digester}
_CIPHERS = {c.value for c in Cipher}


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """One record of the blob table, with what follows from it.

    Sizes and offsets in bytes.  ``meta_blob_id`` is the object that holds CCT,
    TOC and digests: the blob itself, or for ref images a small one of its own.
    ``data_size``: where the compressed chunk data end (format.md 2.9).
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


def read_tables(data: memoryview, check: Checks = STRICT) -> Tables:
    """Raises ``ImageError``; ``UnsupportedImage`` for RAFS v5 and features that we do not know.

    With a collecting ``check``, faulty values are replaced by harmless ones (an
    empty table, no compressor); only what is no bootstrap at all is still raised.
    """
    if len(data) >= 8 and struct.unpack_from("<I", data)[0] == RAFS_V5_MAGIC:
        raise UnsupportedImage("a RAFS v5 bootstrap; only v6 can be read: convert the image to v6")
    if len(data) < _MIN_SIZE:
        raise ImageError(f"{len(data)} bytes are no RAFS v6 bootstrap: truncated?")
    sb = SuperBlock.unpack(data, EROFS_SUPER_OFFSET)
    ext = ExtSuperBlock.unpack(data, _EXT_OFFSET)
    flags = _check_superblocks(sb, ext, len(data), check)
    blobs = _read_blobs(data, sb, ext, flags, check)
    prefetch = _read_prefetch(data, ext, check)
    return Tables(sb, ext, flags, blobs, prefetch, _chunk_table(data, ext, check))


def _check_superblocks(sb: SuperBlock, ext: ExtSuperBlock, size: int, check: Checks) -> SuperFlags:
    at = EROFS_SUPER_OFFSET
    check(
        sb.magic == EROFS_SUPER_MAGIC_V1, "superblock.magic", at,
        f"wrong magic {sb.magic:#010x} at 1024, an EROFS image has {EROFS_SUPER_MAGIC_V1:#x}",
    )  # fmt: skip
    check(
        sb.feature_compat & RAFS_V6_COMPAT, "superblock.feature_compat", at + 8,
        "an EROFS image, but not RAFS v6 (feature_compat lacks its bit)", unsupported=True,
    )  # fmt: skip
    # a kernel acts on bits that mean nothing to us: a checksum, name filters, places of xattrs
    foreign = sb.feature_compat & ~(RAFS_V6_COMPAT | EROFS_FEATURE_COMPAT_MTIME)
    check(
        not foreign, "superblock.feature_compat", at + 8,
        f"feature_compat has unknown bits {foreign:#x}", unsupported=True,
    )  # fmt: skip
    check(
        sb.feature_incompat == RAFS_V6_INCOMPAT, "superblock.feature_incompat", at + 80,
        f"feature_incompat {sb.feature_incompat:#x}, RAFS v6 has 0xc", unsupported=True,
    )  # fmt: skip
    check(sb.checksum == 0, "superblock.checksum", at + 4, "superblock checksum is not 0")
    if not check(
        sb.blkszbits in (9, 12), "superblock.blkszbits", at + 12,
        f"block size 2^{sb.blkszbits}, it must be 512 or 4096",
    ):  # fmt: skip
        raise ImageError("without its block size nothing else can be found")
    check(
        sb.sb_extslots == 0 and sb.u1 == 0, "superblock.reserved", at + 13,
        "superblock extension fields are not 0",
    )  # fmt: skip
    check(sb.inos != 0, "superblock.inos", at + 16, "inos is 0")
    check(
        sb.xattr_blkaddr == 0, "superblock.xattr_blkaddr", at + 44,
        "xattr_blkaddr is not 0: RAFS has no shared xattrs",
    )  # fmt: skip
    check(
        sb.devt_slotoff == RAFS_DEVT_SLOTOFF, "superblock.devt_slotoff", at + 88,
        f"devt_slotoff is {sb.devt_slotoff}, not 11",
    )  # fmt: skip
    check(
        sb.extra_devices <= MAX_BLOBS, "superblock.extra_devices", at + 86,
        f"{sb.extra_devices} devices, at most {MAX_BLOBS}",
    )  # fmt: skip
    check(
        size % (1 << sb.blkszbits) == 0, "bootstrap.size", size,
        f"size {size} is no multiple of the block: truncated?",
    )  # fmt: skip
    check(
        sb.meta_blkaddr << sb.blkszbits <= size, "superblock.meta_blkaddr", at + 40,
        "meta_blkaddr lies outside: truncated?",
    )  # fmt: skip

    known = sum(SuperFlags) | SUPER_FLAGS_PRESERVED
    check(
        not ext.flags & ~known, "ext-superblock.flags", _EXT_OFFSET,
        f"superblock flags {ext.flags & ~known:#x} are not known", unsupported=True,
    )  # fmt: skip
    flags = SuperFlags(ext.flags & sum(SuperFlags))
    for kinds, what in ((SUPER_FLAGS_COMPRESSION, "compressor"), (SUPER_FLAGS_HASH, "digester")):
        check(
            sum(bool(flags & f) for f in kinds) == 1, "ext-superblock.flags", _EXT_OFFSET,
            f"superblock flags {ext.flags:#x} do not name exactly one {what}",
        )  # fmt: skip
    tarfs = bool(flags & SuperFlags.TARFS_MODE)
    check(
        tarfs == (sb.blkszbits == 9), "ext-superblock.flags", _EXT_OFFSET,
        "512-byte blocks and tarfs mode go together",
    )  # fmt: skip
    if not check(
        _is_chunk_size(ext.chunk_size), "ext-superblock.chunk_size", _EXT_OFFSET + 20,
        f"chunk size {ext.chunk_size:#x}",
    ):  # fmt: skip
        raise ImageError("without its chunk size no file can be read")
    return flags


def _is_chunk_size(size: int) -> bool:
    return MIN_CHUNK_SIZE <= size <= MAX_CHUNK_SIZE and size & (size - 1) == 0


def _table(
    data: memoryview, name: str, offset: int, size: int, entry: int, align: int, check: Checks
) -> memoryview:
    fault = name.replace(" ", "-")
    good = (
        check(
            size % entry == 0, f"{fault}.size", _EXT_OFFSET,
            f"{name}: size {size} is no multiple of {entry}",
        ),
        check(
            offset >= EROFS_BLOCK and offset % align == 0, f"{fault}.offset", _EXT_OFFSET,
            f"{name}: offset {offset:#x}",
        ),
        check(
            offset <= len(data) and size <= len(data) - offset, f"{fault}.outside", _EXT_OFFSET,
            f"{name}: {size} bytes at {offset:#x} lie outside the file of {len(data)} bytes",
        ),
    )  # fmt: skip
    return data[offset : offset + size] if all(good) else data[:0]


def _read_blobs(
    data: memoryview, sb: SuperBlock, ext: ExtSuperBlock, flags: SuperFlags, check: Checks
) -> tuple[BlobInfo, ...]:
    table = _table(
        data, "blob table", ext.blob_table_offset, ext.blob_table_size, BlobRecord.SIZE,
        EROFS_BLOCK, check,
    )  # fmt: skip
    count = len(table) // BlobRecord.SIZE
    check(
        count == sb.extra_devices, "superblock.extra_devices", EROFS_SUPER_OFFSET + 86,
        f"{count} blob records and {sb.extra_devices} device slots",
    )  # fmt: skip
    slots_end = DEVICE_SLOTS_OFFSET + count * DeviceSlot.SIZE
    check(
        slots_end <= ext.blob_table_offset or not count, "blob-table.offset", _EXT_OFFSET + 8,
        "device slots and blob table overlap",
    )  # fmt: skip
    blobs = []
    for i in range(count):
        slot_at = DEVICE_SLOTS_OFFSET + i * DeviceSlot.SIZE
        record_at = ext.blob_table_offset + i * BlobRecord.SIZE
        slot = DeviceSlot.unpack(data, slot_at)
        record = BlobRecord.unpack(data, record_at)
        _check_slot(i, slot_at, slot, record, sb, check)
        blobs.append(_blob(i, record_at, record, slot.blocks, ext, flags, check))
    ids = [blob.blob_id for blob in blobs]
    check(
        len(set(ids)) == len(ids), "blob-table.blob_id", ext.blob_table_offset,
        "two blobs have the same id",
    )  # fmt: skip
    check(
        ext.chunk_table_size == 0
        or ext.chunk_table_offset >= ext.blob_table_offset + ext.blob_table_size
        or ext.chunk_table_offset + ext.chunk_table_size <= ext.blob_table_offset,
        "chunk-table.offset", _EXT_OFFSET + 24, "chunk table and blob table overlap",
    )  # fmt: skip
    return tuple(blobs)


def _check_slot(
    index: int, at: int, slot: DeviceSlot, r: BlobRecord, sb: SuperBlock, check: Checks
) -> None:
    where = f"device slot {index}"
    tag = _text(slot.tag, "device-slot.tag", at, f"{where}: tag", check)
    check(
        slot.tag == r.blob_id, "device-slot.tag", at,
        f"{where}: tag {tag!r} is not the blob id '{shown(r.blob_id.rstrip(bytes(1)))}'",
    )  # fmt: skip
    blocks = r.uncompressed_size >> sb.blkszbits
    check(slot.blocks != 0, "device-slot.blocks", at + 64, f"{where}: 0 blocks")
    check(
        slot.blocks == blocks, "device-slot.blocks", at + 64,
        f"{where}: {slot.blocks} blocks, the blob table says {blocks}",
    )  # fmt: skip


def _blob(
    index: int, at: int, r: BlobRecord, device_blocks: int, ext: ExtSuperBlock,
    flags: SuperFlags, check: Checks,
) -> BlobInfo:  # fmt: skip
    where = f"blob {index}"
    blob_id = _text(r.blob_id, "blob-table.blob_id", at, f"{where}: id", check)
    for condition, name, field_at, text in (
        (r.blob_index == index, "blob_index", 64, f"says that it is blob {r.blob_index}"),
        (r.chunk_size == ext.chunk_size, "chunk_size", 68, f"chunk size {r.chunk_size:#x}"),
        (r.chunk_count <= MAX_CHUNKS, "chunk_count", 72, f"{r.chunk_count} chunks"),
        (
            r.compression_algo in _COMPRESSORS and r.ci_compressor in _COMPRESSORS,
            "compressor", 76,
            f"compressor {r.compression_algo} or {r.ci_compressor} is not known",
        ),
        (r.digest_algo in _DIGESTERS, "digester", 80, f"digester {r.digest_algo} is not known"),
        (r.cipher_algo in _CIPHERS, "cipher", 216, f"cipher {r.cipher_algo} is not known"),
    ):  # fmt: skip
        check(condition, f"blob-table.{name}", at + field_at, f"{where}: {text}")
    features = BlobFeatures(r.features & sum(BlobFeatures))
    _check_features(where, at, r, features, check, tarfs=bool(flags & SuperFlags.TARFS_MODE))
    _check_sizes(where, at, r, features, check)
    encrypted = r.cipher_algo == Cipher.AES_128_XTS
    check(
        (r.cipher_algo != Cipher.NONE) == bool(features & BlobFeatures.ENCRYPTED),
        "blob-table.cipher", at + 216, f"{where}: cipher and feature disagree",
    )  # fmt: skip
    separate = features & BlobFeatures.SEPARATE and any(r.blob_meta_digest)
    return BlobInfo(
        index=index,
        blob_id=blob_id,
        meta_blob_id=r.blob_meta_digest.hex() if separate and not encrypted else blob_id,
        chunk_size=r.chunk_size,
        chunk_count=r.chunk_count,
        compressor=_COMPRESSORS.get(r.compression_algo, Compressor.NONE),
        digester=_DIGESTERS.get(r.digest_algo, Digester.BLAKE3),
        features=features,
        compressed_size=r.compressed_size,
        uncompressed_size=r.uncompressed_size,
        ci_compressor=_COMPRESSORS.get(r.ci_compressor, Compressor.NONE),
        ci_offset=r.ci_offset,
        ci_compressed_size=r.ci_compressed_size,
        ci_uncompressed_size=r.ci_uncompressed_size,
        toc_size=r.blob_toc_size,
        toc_digest=r.blob_toc_digest,
        device_blocks=device_blocks,
        cipher=Cipher.AES_128_XTS if encrypted else Cipher.NONE,
        key=r.blob_meta_digest if encrypted else b"",
        iv=struct.pack("<2Q", r.blob_meta_size, r.cipher_iv) if encrypted else b"",
    )


def _text(raw: bytes, name: str, at: int, what: str, check: Checks) -> str:
    value = raw.rstrip(b"\0")
    check(value and b"\0" not in value, name, at, f"{what} is empty or has a NUL inside")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        check.fail(name, at, f"{what} is not UTF-8")
        return value.hex()


def _check_features(
    where: str, at: int, r: BlobRecord, f: BlobFeatures, check: Checks, *, tarfs: bool
) -> None:
    name, place = "blob-table.features", at + 84
    check(
        not (r.features & 0xFFFF & ~_KNOWN_LOW_FEATURES or f & BlobFeatures.INTERNAL_V5),
        name, place, f"{where}: features {r.features:#x} are not known", unsupported=True,
    )  # fmt: skip
    check(
        not f & BlobFeatures.EXTERNAL, name, place,
        f"{where} is external: its data lie in another backend", unsupported=True,
    )  # fmt: skip
    aligned, special = bool(f & BlobFeatures.ALIGNED), f & _SPECIAL
    check(tarfs != aligned, name, place, f"{where}: ALIGNED does not fit the image")
    check(
        tarfs == bool(f & BlobFeatures.TARFS), name, place,
        f"{where}: TARFS does not fit the image",
    )  # fmt: skip
    v2 = bool(f & BlobFeatures.CHUNK_INFO_V2)
    check(v2 or not special, name, place, f"{where}: {special!r} needs CHUNK_INFO_V2")
    if tarfs or f & BlobFeatures.IS_CHUNKDICT_GENERATED:
        return
    size = r.chunk_count * (24 if v2 else 16)
    right = r.ci_uncompressed_size >= size if special else r.ci_uncompressed_size == size
    check(
        right, "blob-table.ci_size", at + 128,
        f"{where}: {r.ci_uncompressed_size} bytes of CCT for {r.chunk_count} chunks",
    )  # fmt: skip
    check(r.chunk_count, "blob-table.chunk_count", at + 72, f"{where} has no chunks")


def _check_sizes(where: str, at: int, r: BlobRecord, f: BlobFeatures, check: Checks) -> None:
    # encryption pads units of less than 16 bytes to 18
    least = 18 if f & BlobFeatures.ENCRYPTED else 0
    for condition, name, field_at, text in (
        (
            r.uncompressed_size <= _FLAT_MAX, "uncompressed_size", 96,
            f"{where}: {r.uncompressed_size} bytes of data",
        ),
        (
            r.compressed_size <= _COMPRESSED_MAX, "compressed_size", 88,
            f"{where}: {r.compressed_size} compressed bytes",
        ),
        (r.ci_offset <= _COMPRESSED_MAX, "ci_offset", 112, f"{where}: CCT at {r.ci_offset:#x}"),
        (
            # 16 MiB chunks of 24 + 40 bytes at most
            r.ci_uncompressed_size <= MAX_CHUNKS * 64 + (1 << 30), "ci_size", 128,
            f"{where}: {r.ci_uncompressed_size} bytes of CCT",
        ),
        (
            r.ci_compressed_size <= max(r.ci_uncompressed_size, least), "ci_size", 120,
            f"{where}: the CCT is larger compressed than uncompressed",
        ),
        (
            not f & BlobFeatures.ALIGNED or r.uncompressed_size % EROFS_BLOCK == 0,
            "uncompressed_size", 96,
            f"{where}: {r.uncompressed_size} bytes of data are no whole blocks",
        ),
    ):  # fmt: skip
        check(condition, f"blob-table.{name}", at + field_at, text)


def _read_prefetch(data: memoryview, ext: ExtSuperBlock, check: Checks) -> tuple[int, ...]:
    if not ext.prefetch_table_size or not ext.prefetch_table_offset:
        return ()
    table = _table(
        data,
        "prefetch table",
        ext.prefetch_table_offset,
        ext.prefetch_table_size,
        4,
        _ALIGN_PREFETCH,
        check,
    )
    nids = [nid for (nid,) in struct.iter_unpack("<I", table)]
    return tuple(nids[: nids.index(0)] if 0 in nids else nids)


def _chunk_table(data: memoryview, ext: ExtSuperBlock, check: Checks) -> memoryview:
    if not ext.chunk_table_size:
        return data[:0]
    return _table(
        data,
        "chunk table",
        ext.chunk_table_offset,
        ext.chunk_table_size,
        CHUNK_RECORD_SIZE,
        EROFS_BLOCK,
        check,
    )


def is_inlined_id(blob_id: str) -> bool:
    """Does the record stand for the object that its bootstrap was found in (format.md 2.9)?"""
    return blob_id.encode() == _INLINED_ID
