"""Inodes, and what a directory and a chunk index say of them: values, checked one by one.

format.md 1.6; the rules that need more than one inode are in ``rafs_v6.validate``.
"""

from __future__ import annotations

import os
import stat

from rafs_v6.errors import ImageError
from rafs_v6.format.erofs import (
    EROFS_INODE_CHUNK_BASED,
    EROFS_INODE_FLAT_INLINE,
    EROFS_INODE_FLAT_PLAIN,
    EROFS_SLOTSIZE,
    EROFS_XATTR_IBODY_SIZE,
    SYMLINK_MAX,
    InodeCompact,
    InodeExtended,
)
from rafs_v6.values import dataclass

_LAYOUTS = (EROFS_INODE_FLAT_PLAIN, EROFS_INODE_FLAT_INLINE, EROFS_INODE_CHUNK_BASED)


@dataclass(frozen=True, slots=True)
class Inode:
    """A file, directory, link or special file (format.md 1.6).

    ``nid``: its number, equal for all names of a file.  ``mode``: type and permissions as in
    ``st_mode``.  ``size``: bytes; of a directory, those of its entries.  ``mtime``: seconds since
    1970, may be negative; ``mtime_nsec``: nanoseconds.  ``offset``, ``body_size``, ``xattr_size``:
    bytes in the bootstrap.  ``layout``, ``i_u``: the kernel's data layout and its word.
    """

    nid: int
    offset: int
    layout: int
    mode: int
    size: int
    uid: int
    gid: int
    mtime: int
    mtime_nsec: int
    nlink: int
    i_u: int
    body_size: int
    xattr_size: int

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_reg(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def rdev(self) -> int:
        """Device number of a special file, as ``os.makedev`` makes it; 0 for others."""
        if not (stat.S_ISCHR(self.mode) or stat.S_ISBLK(self.mode)):
            return 0
        return os.makedev((self.i_u >> 8) & 0xFFF, (self.i_u & 0xFF) | ((self.i_u >> 12) & 0xFFF00))

    @property
    def tail(self) -> int:
        """Where inline data or chunk indexes may begin."""
        return self.offset + self.body_size + self.xattr_size


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """``size`` bytes of a file, at ``flat_off`` of blob ``blob_index``."""

    blob_index: int
    chunk_index: int
    flat_off: int
    size: int


@dataclass(frozen=True, slots=True)
class Dirent:
    """An entry of a directory; ``file_type``: format.md 1.9."""

    name: bytes
    nid: int
    file_type: int


def read_inode(data: memoryview, meta: int, nid: int) -> Inode:
    """Inode ``nid`` of a bootstrap whose inodes begin at byte ``meta``; ``ImageError``."""
    offset = meta + nid * EROFS_SLOTSIZE
    what = f"inode {nid}"
    i_format = int.from_bytes(_bytes(data, offset, 2, what), "little")
    layout = i_format >> 1
    if layout not in _LAYOUTS:
        raise ImageError(f"{what}: format {i_format:#x} is not RAFS v6")
    raw: InodeExtended | InodeCompact
    if i_format & 1:
        raw = InodeExtended.unpack(_bytes(data, offset, InodeExtended.SIZE, what))
        mtime, nsec = raw.i_mtime, raw.i_mtime_nsec
    else:
        raw = InodeCompact.unpack(_bytes(data, offset, InodeCompact.SIZE, what))
        mtime = nsec = 0
    icount = raw.i_xattr_icount
    xattr_size = EROFS_XATTR_IBODY_SIZE + 4 * (icount - 1) if icount else 0
    _bytes(data, offset, raw.SIZE + xattr_size, what)
    inode = Inode(
        nid, offset, layout, raw.i_mode, raw.i_size, raw.i_uid, raw.i_gid, mtime, nsec,
        raw.i_nlink, raw.i_u, raw.SIZE, xattr_size,
    )  # fmt: skip
    _check(inode)
    return inode


def _bytes(data: memoryview, offset: int, size: int, what: str) -> memoryview:
    if offset < 0 or offset + size > len(data):
        raise ImageError(f"{what}: {size} bytes at {offset:#x} lie outside the bootstrap")
    return data[offset : offset + size]


def _check(inode: Inode) -> None:
    what = f"inode {inode.nid}"
    kind = stat.S_IFMT(inode.mode)
    if inode.nlink == 0:
        raise ImageError(f"{what}: no links")
    if kind == stat.S_IFREG:
        if inode.layout != EROFS_INODE_CHUNK_BASED:
            raise ImageError(f"{what}: a regular file that is not chunk based")
    elif inode.layout == EROFS_INODE_CHUNK_BASED:
        raise ImageError(f"{what}: only regular files are chunk based")
    elif kind in (stat.S_IFDIR, stat.S_IFLNK):
        if kind == stat.S_IFLNK and not 0 < inode.size <= SYMLINK_MAX:
            raise ImageError(f"{what}: a symbolic link of {inode.size} bytes")
    elif kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK):
        if inode.size:
            raise ImageError(f"{what}: a special file of {inode.size} bytes")
    else:
        raise ImageError(f"{what}: mode {inode.mode:#o} has no type")
    if inode.mtime_nsec >= 10**9:
        raise ImageError(f"{what}: {inode.mtime_nsec} nanoseconds")
