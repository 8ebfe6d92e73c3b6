"""The superblocks and the tables of a bootstrap, checked field by field as they are read.

Costs at most one pass over the tables.  Refuses what nydusd's reader refuses
(format.md 1.2 - 1.5), and every table that does not lie inside the file.
"""

from __future__ import annotations

import struct

from rafs_v6.errors import ImageError, UnsupportedImage
from rafs_v6.faults import STRICT, Checks
from rafs_v6.format.blob_table import BlobInfo, read_blobs
from rafs_v6.format.erofs import (
    CHUNK_RECORD_SIZE,
    EROFS_BLOCK,
    EROFS_FEATURE_COMPAT_MTIME,
    EROFS_SUPER_MAGIC_V1,
    EROFS_SUPER_OFFSET,
    MAX_BLOBS,
    MAX_CHUNK_SIZE,
    MIN_CHUNK_SIZE,
    RAFS_DEVT_SLOTOFF,
    RAFS_EXT_SUPER_OFFSET,
    RAFS_V5_MAGIC,
    RAFS_V6_COMPAT,
    RAFS_V6_INCOMPAT,
    SUPER_FLAGS_COMPRESSION,
    SUPER_FLAGS_HASH,
    SUPER_FLAGS_PRESERVED,
    BlobRecord,
    ExtSuperBlock,
    SuperBlock,
    SuperFlags,
)
from rafs_v6.values import dataclass

_MIN_SIZE = 2 * EROFS_BLOCK
_ALIGN_PREFETCH = 8


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
    ext = ExtSuperBlock.unpack(data, RAFS_EXT_SUPER_OFFSET)
    flags = _check_superblocks(sb, ext, len(data), check)
    table = _table(
        data, "blob table", ext.blob_table_offset, ext.blob_table_size, BlobRecord.SIZE,
        EROFS_BLOCK, check,
    )  # fmt: skip
    blobs = read_blobs(data, len(table) // BlobRecord.SIZE, sb, ext, flags, check)
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
        not ext.flags & ~known, "ext-superblock.flags", RAFS_EXT_SUPER_OFFSET,
        f"superblock flags {ext.flags & ~known:#x} are not known", unsupported=True,
    )  # fmt: skip
    flags = SuperFlags(ext.flags & sum(SuperFlags))
    for kinds, what in ((SUPER_FLAGS_COMPRESSION, "compressor"), (SUPER_FLAGS_HASH, "digester")):
        check(
            sum(bool(flags & f) for f in kinds) == 1, "ext-superblock.flags", RAFS_EXT_SUPER_OFFSET,
            f"superblock flags {ext.flags:#x} do not name exactly one {what}",
        )  # fmt: skip
    tarfs = bool(flags & SuperFlags.TARFS_MODE)
    check(
        tarfs == (sb.blkszbits == 9), "ext-superblock.flags", RAFS_EXT_SUPER_OFFSET,
        "512-byte blocks and tarfs mode go together",
    )  # fmt: skip
    if not check(
        _is_chunk_size(ext.chunk_size), "ext-superblock.chunk_size", RAFS_EXT_SUPER_OFFSET + 20,
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
            size % entry == 0, f"{fault}.size", RAFS_EXT_SUPER_OFFSET,
            f"{name}: size {size} is no multiple of {entry}",
        ),
        check(
            offset >= EROFS_BLOCK and offset % align == 0, f"{fault}.offset", RAFS_EXT_SUPER_OFFSET,
            f"{name}: offset {offset:#x}",
        ),
        check(
            offset <= len(data) and size <= len(data) - offset, f"{fault}.outside",
            RAFS_EXT_SUPER_OFFSET,
            f"{name}: {size} bytes at {offset:#x} lie outside the file of {len(data)} bytes",
        ),
    )  # fmt: skip
    return data[offset : offset + size] if all(good) else data[:0]


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
