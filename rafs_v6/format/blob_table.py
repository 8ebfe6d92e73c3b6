"""The blob table of a bootstrap and the device slots beside it, checked record by record.

Refuses what nydusd's reader refuses (format.md 1.3, 1.4).
"""

from __future__ import annotations

import struct

from rafs_v6.errors import shown
from rafs_v6.faults import Checks
from rafs_v6.format.erofs import (
    DEVICE_SLOTS_OFFSET,
    EROFS_BLOCK,
    EROFS_SUPER_OFFSET,
    MAX_CHUNKS,
    RAFS_EXT_SUPER_OFFSET,
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
from rafs_v6.values import dataclass

_FLAT_MAX = 1 << 44
_COMPRESSED_MAX = 1 << 40
_KNOWN_LOW_FEATURES = 0x0FFF
_TAR_HEADER = 512
_INLINED_ID = b"x" * 64
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


def read_blobs(
    data: memoryview, count: int, sb: SuperBlock, ext: ExtSuperBlock, flags: SuperFlags,
    check: Checks,
) -> tuple[BlobInfo, ...]:  # fmt: skip
    """The ``count`` records of the table that ``ext`` names, which lies inside of ``data``.

    Raises ``ImageError``; ``UnsupportedImage`` for features that we do not know.
    """
    check(
        count == sb.extra_devices, "superblock.extra_devices", EROFS_SUPER_OFFSET + 86,
        f"{count} blob records and {sb.extra_devices} device slots",
    )  # fmt: skip
    slots_end = DEVICE_SLOTS_OFFSET + count * DeviceSlot.SIZE
    check(
        slots_end <= ext.blob_table_offset or not count, "blob-table.offset",
        RAFS_EXT_SUPER_OFFSET + 8,
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
        "chunk-table.offset", RAFS_EXT_SUPER_OFFSET + 24, "chunk table and blob table overlap",
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


def is_inlined_id(blob_id: str) -> bool:
    """Does the record stand for the object that its bootstrap was found in (format.md 2.9)?"""
    return blob_id.encode() == _INLINED_ID
