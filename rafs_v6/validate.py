"""Checks the whole tree of a bootstrap before a kernel sees it.

One pass.  Budgets make sure of it: an honest image has no inodes that share
their dirents, chunk indexes or xattrs, so the sums of these cannot exceed the
file; a hostile one that makes many inodes point at one large table runs out of
budget instead of keeping us busy.
"""

from __future__ import annotations

import stat
import struct
from typing import TYPE_CHECKING

from rafs_v6.erofs import CHUNK_INDEX_SIZE, EROFS_DIRENT_SIZE
from rafs_v6.errors import ImageError

if TYPE_CHECKING:
    from rafs_v6.bootstrap import Bootstrap, ChunkRef, Inode

# dirent file type -> mode type (sheet 1.9); 0 is "unknown"
_TYPES = {
    1: stat.S_IFREG,
    2: stat.S_IFDIR,
    3: stat.S_IFCHR,
    4: stat.S_IFBLK,
    5: stat.S_IFIFO,
    6: stat.S_IFSOCK,
    7: stat.S_IFLNK,
}

_Place = tuple[int, int]  # flat offset, size


class _Budget:
    def __init__(self, total: int, what: str) -> None:
        self._left = total
        self._what = what

    def spend(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0:
            raise ImageError(f"more {self._what} than the bootstrap has room for: shared ones?")


def validate_tree(bootstrap: Bootstrap) -> None:
    _Validator(bootstrap).run()


class _Validator:
    def __init__(self, bootstrap: Bootstrap) -> None:
        self._b = bootstrap
        size = len(bootstrap.data)
        self._dirents = _Budget(size // EROFS_DIRENT_SIZE, "directory entries")
        self._indexes = _Budget(size // CHUNK_INDEX_SIZE, "chunk indexes")
        self._xattr_bytes = _Budget(size, "xattrs")
        self._link_bytes = _Budget(size, "symbolic links")
        self._known = _chunk_places(bootstrap)
        self._checked: dict[int, Inode] = {}

    def run(self) -> None:
        root = self._b.root
        self._checked[root.nid] = root
        self._b.xattrs(root)
        stack = [(root, root.nid)]
        while stack:
            inode, parent = stack.pop()
            self._dirents.spend(inode.size // (EROFS_DIRENT_SIZE + 1))
            entries = self._b.read_dir(inode)
            dots = {e.name: e.nid for e in entries if e.name in (b".", b"..")}
            if dots.get(b".") != inode.nid or dots.get(b"..") != parent:
                raise ImageError(f"directory {inode.nid}: '.' or '..' is missing or wrong")
            for entry in entries:
                if entry.name in dots:
                    continue
                child = self._checked.get(entry.nid)
                if child is None:
                    child = self._b.inode(entry.nid)
                    self._check(child)
                    self._checked[entry.nid] = child
                    if child.is_dir:
                        stack.append((child, inode.nid))
                elif child.is_dir:
                    raise ImageError(f"directory {entry.nid} is reached twice")
                if entry.file_type and _TYPES.get(entry.file_type) != stat.S_IFMT(child.mode):
                    raise ImageError(
                        f"directory {inode.nid}: {entry.name!r} says type {entry.file_type}, "
                        f"its inode has mode {child.mode:#o}"
                    )

    def _check(self, inode: Inode) -> None:
        self._xattr_bytes.spend(inode.xattr_size)
        self._b.xattrs(inode)
        if inode.is_reg:
            self._indexes.spend(self._b.chunk_count(inode))
            refs = list(self._b.chunks(inode))
            self._b.check_chunk_format(inode, refs)
            for ref in refs:
                self._check_chunk(inode, ref)
        elif inode.is_symlink:
            self._link_bytes.spend(inode.size)
            self._b.read_link(inode)

    def _check_chunk(self, inode: Inode, ref: ChunkRef) -> None:
        """The kernel goes by the address only: it must be that of the chunk which is named."""
        if self._known is None or self._b.blobs[ref.blob_index].is_tarfs:
            return
        place = self._known.get((ref.blob_index, ref.chunk_index))
        if place is None:
            raise ImageError(
                f"inode {inode.nid}: chunk {ref.chunk_index} of blob {ref.blob_index} "
                "is not in the chunk table"
            )
        if place[0] != ref.flat_off or ref.size > place[1]:
            raise ImageError(
                f"inode {inode.nid}: {ref.size} bytes at {ref.flat_off:#x}, but chunk "
                f"{ref.chunk_index} of blob {ref.blob_index} has {place[1]} at {place[0]:#x}"
            )


def _chunk_places(bootstrap: Bootstrap) -> dict[tuple[int, int], _Place] | None:
    """(blob index, chunk index) -> place, by the chunk table; None when there is no table."""
    if not len(bootstrap.chunk_table):
        return None
    places: dict[tuple[int, int], _Place] = {}
    record = struct.Struct("<32xI8xI8xQ8xI4x")
    for blob, size, off, index in record.iter_unpack(bootstrap.chunk_table):
        if blob >= len(bootstrap.blobs):
            raise ImageError(f"chunk table: blob {blob} of {len(bootstrap.blobs)}")
        places[blob, index] = (off, size)
    return places
