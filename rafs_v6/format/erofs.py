"""On-disk structures of a RAFS v6 bootstrap and its blobs: layouts and names, no behaviour.

Fields carry the names of the kernel's ``fs/erofs/erofs_fs.h`` and, where RAFS adds
its own, of docs/format.md (sections in brackets).  All integers are little
endian.  Each structure has ``SIZE``, ``unpack`` and ``pack``.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import ClassVar, Self

from rafs_v6.values import dataclass

EROFS_SUPER_OFFSET = 1024
RAFS_EXT_SUPER_OFFSET = 1152  # behind EROFS's own superblock
EROFS_SUPER_MAGIC_V1 = 0xE0F5E1E2
RAFS_V5_MAGIC = 0x52414653

RAFS_V6_COMPAT = 0x40000000  # feature_compat: this EROFS image is RAFS v6 [1.2]
EROFS_FEATURE_COMPAT_MTIME = 0x2  # times are of the last change of data: changes no layout
EROFS_FEATURE_INCOMPAT_CHUNKED_FILE = 0x4
EROFS_FEATURE_INCOMPAT_DEVICE_TABLE = 0x8
RAFS_V6_INCOMPAT = EROFS_FEATURE_INCOMPAT_CHUNKED_FILE | EROFS_FEATURE_INCOMPAT_DEVICE_TABLE

EROFS_SLOTSIZE = 32  # what a nid counts
EROFS_BLOCK = 4096
TARFS_BLOCK = 512
RAFS_DEVT_SLOTOFF = 11
DEVICE_SLOTS_OFFSET = RAFS_DEVT_SLOTOFF * 128

EROFS_INODE_FLAT_PLAIN = 0
EROFS_INODE_FLAT_INLINE = 2
EROFS_INODE_CHUNK_BASED = 4
EROFS_CHUNK_FORMAT_BLKBITS_MASK = 0x1F
EROFS_CHUNK_FORMAT_INDEXES = 0x20

EROFS_NAME_LEN = 255
EROFS_DIRENT_SIZE = 12
EROFS_XATTR_IBODY_SIZE = 12
CHUNK_INDEX_SIZE = 8
CHUNK_RECORD_SIZE = 80  # chunk table [1.17]
CCT_HEADER_SIZE = 4096
CCT_MAGIC = 0xB10BB10B
SYMLINK_MAX = 4096

MIN_CHUNK_SIZE, MAX_CHUNK_SIZE = 0x1000, 0x1000000
MAX_BLOBS = 254
MAX_CHUNKS = 1 << 24

# xattr name index -> prefix [1.12]; 2 and 3 are complete names
XATTR_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}


class Compressor(IntEnum):
    """Of chunks, and of a chunk map [1.5, 3.1]."""

    NONE = 0
    LZ4_BLOCK = 1
    GZIP = 2
    ZSTD = 3


class Digester(IntEnum):
    """Of uncompressed chunks [1.5, 3.2]."""

    BLAKE3 = 0
    SHA256 = 1


class Cipher(IntEnum):
    NONE = 0
    AES_128_XTS = 1


class SuperFlags(IntFlag):
    """Extended superblock [1.3]."""

    COMPRESSION_NONE = 0x1
    COMPRESSION_LZ4 = 0x2
    HASH_BLAKE3 = 0x4
    HASH_SHA256 = 0x8
    EXPLICIT_UID_GID = 0x10
    HAS_XATTR = 0x20
    COMPRESSION_GZIP = 0x40
    COMPRESSION_ZSTD = 0x80
    INLINED_CHUNK_DIGEST = 0x100
    TARFS_MODE = 0x200
    ENCRYPTION_NONE = 0x01000000
    ENCRYPTION_AES_128_XTS = 0x02000000


SUPER_FLAGS_COMPRESSION = {
    SuperFlags.COMPRESSION_NONE: Compressor.NONE,
    SuperFlags.COMPRESSION_LZ4: Compressor.LZ4_BLOCK,
    SuperFlags.COMPRESSION_GZIP: Compressor.GZIP,
    SuperFlags.COMPRESSION_ZSTD: Compressor.ZSTD,
}
SUPER_FLAGS_HASH = {
    SuperFlags.HASH_BLAKE3: Digester.BLAKE3,
    SuperFlags.HASH_SHA256: Digester.SHA256,
}
SUPER_FLAGS_PRESERVED = 0xFC000000  # accepted and ignored


class BlobFeatures(IntFlag):
    """Blob table record [1.5]."""

    ALIGNED = 0x1
    INLINED_FS_META = 0x2
    CHUNK_INFO_V2 = 0x4
    ZRAN = 0x8
    SEPARATE = 0x10
    INLINED_CHUNK_DIGEST = 0x20
    TARFS = 0x40
    BATCH = 0x80
    ENCRYPTED = 0x100
    IS_CHUNKDICT_GENERATED = 0x200
    IS_SEPARATED_WITH_PREFETCH_FILES = 0x400
    EXTERNAL = 0x800
    HAS_TAR_HEADER = 0x10000000
    HAS_TOC = 0x20000000
    CAP_TAR_TOC = 0x40000000
    INTERNAL_V5 = 0x80000000


class ChunkFlags(IntFlag):
    """Chunk table record [1.17]."""

    COMPRESSED = 0x1
    HOLE = 0x2
    ENCRYPTED = 0x4
    BATCH = 0x8
    HAS_CRC32C = 0x10


class ChunkV2Flags(IntFlag):
    """Chunk record of version 2 [2.5]."""

    COMPRESSED = 0x1
    ZRAN = 0x2
    BATCH = 0x4
    ENCRYPTED = 0x8
    CRC = 0x10


class TocFlags(IntFlag):
    """TOC entry [2.8]."""

    RAW = 0x1
    ZSTD = 0x2
    LZ4_BLOCK = 0x4


class _Structure:
    LAYOUT: ClassVar[struct.Struct]
    __slots__: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def unpack(cls, data: bytes | memoryview, offset: int = 0) -> Self:
        return cls(*cls.LAYOUT.unpack_from(data, offset))

    def pack(self) -> bytes:
        # Not astuple(), which copies deeply: bootstraps have one record for every file and chunk.
        return self.LAYOUT.pack(*map(self.__getattribute__, self.__slots__))


@dataclass(frozen=True, slots=True)
class SuperBlock(_Structure):
    """``struct erofs_super_block``, 128 bytes at 1024 [1.2]."""

    LAYOUT: ClassVar = struct.Struct("<3I2BH2Q4I16s16sI3H38s")
    SIZE: ClassVar = 128

    magic: int
    checksum: int
    feature_compat: int
    blkszbits: int
    sb_extslots: int
    root_nid: int
    inos: int
    build_time: int
    build_time_nsec: int
    blocks: int
    meta_blkaddr: int
    xattr_blkaddr: int
    uuid: bytes
    volume_name: bytes
    feature_incompat: int
    u1: int
    extra_devices: int
    devt_slotoff: int
    reserved: bytes


@dataclass(frozen=True, slots=True)
class ExtSuperBlock(_Structure):
    """RAFS extended superblock, 256 bytes at 1152 [1.3]."""

    LAYOUT: ClassVar = struct.Struct("<2Q2I3Q2I200s")
    SIZE: ClassVar = 256

    flags: int
    blob_table_offset: int
    blob_table_size: int
    chunk_size: int
    chunk_table_offset: int
    chunk_table_size: int
    prefetch_table_offset: int
    prefetch_table_size: int
    padding: int
    reserved: bytes


@dataclass(frozen=True, slots=True)
class DeviceSlot(_Structure):
    """``struct erofs_deviceslot``, 128 bytes [1.4]."""

    LAYOUT: ClassVar = struct.Struct("<64s2I56s")
    SIZE: ClassVar = 128

    tag: bytes
    blocks: int
    mapped_blkaddr: int
    reserved: bytes


@dataclass(frozen=True, slots=True)
class BlobRecord(_Structure):
    """Blob table record, 256 bytes [1.5]."""

    LAYOUT: ClassVar = struct.Struct("<64s6I2Q2I3Q32s32s2QI36s")
    SIZE: ClassVar = 256

    blob_id: bytes
    blob_index: int
    chunk_size: int
    chunk_count: int
    compression_algo: int
    digest_algo: int
    features: int
    compressed_size: int
    uncompressed_size: int
    blob_toc_size: int
    ci_compressor: int
    ci_offset: int
    ci_compressed_size: int
    ci_uncompressed_size: int
    blob_toc_digest: bytes
    blob_meta_digest: bytes
    blob_meta_size: int
    cipher_iv: int
    cipher_algo: int
    reserved: bytes


@dataclass(frozen=True, slots=True)
class InodeCompact(_Structure):
    """``struct erofs_inode_compact``, 32 bytes [1.6]."""

    LAYOUT: ClassVar = struct.Struct("<4H4I2HI")
    SIZE: ClassVar = 32

    i_format: int
    i_xattr_icount: int
    i_mode: int
    i_nlink: int
    i_size: int
    reserved: int
    i_u: int
    i_ino: int
    i_uid: int
    i_gid: int
    reserved2: int


@dataclass(frozen=True, slots=True)
class InodeExtended(_Structure):
    """``struct erofs_inode_extended``, 64 bytes [1.6]."""

    LAYOUT: ClassVar = struct.Struct("<4HQ4Iq2I16s")
    SIZE: ClassVar = 64

    i_format: int
    i_xattr_icount: int
    i_mode: int
    reserved: int
    i_size: int
    i_u: int
    i_ino: int
    i_uid: int
    i_gid: int
    i_mtime: int
    i_mtime_nsec: int
    i_nlink: int
    reserved2: bytes


@dataclass(frozen=True, slots=True)
class CctHeader(_Structure):
    """Head of the 4096-byte CCT header [2.3]; the magic again is its last word."""

    LAYOUT: ClassVar = struct.Struct("<4I5QI")
    SIZE: ClassVar = 60

    magic: int
    features: int
    ci_compressor: int
    entries: int
    ci_offset: int
    ci_compressed_size: int
    ci_uncompressed_size: int
    context_offset: int
    context_size: int
    context_count: int


@dataclass(frozen=True, slots=True)
class ChunkRecord(_Structure):
    """Chunk table record, 80 bytes [1.17]."""

    LAYOUT: ClassVar = struct.Struct("<32s4I3Q2I")
    SIZE: ClassVar = CHUNK_RECORD_SIZE

    digest: bytes
    blob_index: int
    flags: int
    compressed_size: int
    uncompressed_size: int
    compressed_offset: int
    uncompressed_offset: int
    file_offset: int
    index: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class TocEntry(_Structure):
    """TOC entry, 128 bytes [2.8]."""

    LAYOUT: ClassVar = struct.Struct("<2I16s32s3Q48s")
    SIZE: ClassVar = 128

    flags: int
    reserved: int
    name: bytes
    digest: bytes
    offset: int
    compressed_size: int
    uncompressed_size: int
    reserved2: bytes


DIRENT = struct.Struct("<QHBB")  # nid, nameoff, file_type, reserved [1.9]
CHUNK_INDEX = struct.Struct("<HBBI")  # index low, blob index + 1, index high, blkaddr [1.7]
FLAT_INDEX = struct.Struct("<HHI")  # the kernel's view of it: advise, device, blkaddr
XATTR_ENTRY = struct.Struct("<BBH")  # e_name_len, e_name_index, e_value_size [1.12]


def round_up(value: int, to: int) -> int:
    return -(-value // to) * to
