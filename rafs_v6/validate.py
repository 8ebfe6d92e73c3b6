"""Checks the whole tree of a bootstrap before a kernel sees it.

Two validators of the same rules: one in C (csrc/codec/validate.c), for which the first
mount waits and which knows only "sound", and this one, which names what is not.

One pass.  Budgets make sure of it: an honest image has no inodes that share
their dirents, chunk indexes or xattrs, so the sums of these cannot exceed the
file; a hostile one that makes many inodes point at one large table runs out of
budget instead of keeping us busy.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable

from rafs_v6._codec import ffi, lib
from rafs_v6.errors import ImageError, shown
from rafs_v6.faults import STRICT, Checks
from rafs_v6.format.erofs import CHUNK_INDEX_SIZE, EROFS_DIRENT_SIZE
from rafs_v6.reader.bootstrap import Bootstrap
from rafs_v6.reader.inode import ChunkRef, Dirent, Inode

# dirent file type -> mode type (format.md 1.9); 0 is "unknown"
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


def validate(bootstrap: Bootstrap) -> None:
    """Check the whole tree; raises ``ImageError`` naming the first fault."""
    if not is_sound(bootstrap):
        validate_tree(bootstrap)


def is_sound(bootstrap: Bootstrap) -> bool:
    """Are all rules kept?  False also where only ``validate_tree`` can tell (csrc/codec/rafs.h)."""
    blobs = ffi.new("struct rafs_bootstrap_blob[]", len(bootstrap.blobs))
    for blob, info in zip(blobs, bootstrap.blobs, strict=True):
        blob.flat_size, blob.chunk_count = info.uncompressed_size, info.chunk_count
        blob.is_tarfs = info.is_tarfs
    super_block, table_len = bootstrap.tables.super_block, len(bootstrap.chunk_table)
    data = ffi.from_buffer(bootstrap.data)
    tree = ffi.new(
        "struct rafs_bootstrap *",
        {
            "data": data,
            "len": len(bootstrap.data),
            "meta": super_block.meta_blkaddr * bootstrap.block_size,
            "root_nid": super_block.root_nid,
            # of a table that is not there the offset means nothing
            "chunk_table": table_len and bootstrap.tables.ext.chunk_table_offset,
            "chunk_table_len": table_len,
            "block_size": bootstrap.block_size,
            "chunk_size": bootstrap.chunk_size,
            "blobs": blobs,
            "nblobs": len(bootstrap.blobs),
        },
    )
    return lib.rafs_bootstrap_is_sound(tree) == 1


def validate_tree(bootstrap: Bootstrap, check: Checks = STRICT) -> set[int]:
    """The nids of all inodes of the tree.

    A collecting ``check`` gets every fault of every inode; what a faulty
    directory would have led to is not seen.
    """
    return _Validator(bootstrap, check).run()


class _Validator:
    def __init__(self, bootstrap: Bootstrap, check: Checks) -> None:
        self._b = bootstrap
        self._faults = check
        size = len(bootstrap.data)
        self._dirents = _Budget(size // EROFS_DIRENT_SIZE, "directory entries")
        self._indexes = _Budget(size // CHUNK_INDEX_SIZE, "chunk indexes")
        self._xattr_bytes = _Budget(size, "xattrs")
        self._link_bytes = _Budget(size, "symbolic links")
        self._known = _chunk_places(bootstrap, check)
        self._checked: dict[int, Inode | None] = {}

    def run(self) -> set[int]:
        root = self._b.root
        self._checked[root.nid] = root
        self._part("xattr", root, b"/", self._xattrs)
        stack = [(root, root.nid, b"/")]
        while stack:
            inode, parent, path = stack.pop()
            self._dirents.spend(inode.size // (EROFS_DIRENT_SIZE + 1))
            try:
                entries = self._b.read_dir(inode)
            except ImageError as error:
                self._faults.caught("dirent", _where(inode.nid, path), error)
                continue
            dots = {e.name: e.nid for e in entries if e.name in (b".", b"..")}
            if dots.get(b".") != inode.nid or dots.get(b"..") != parent:
                self._faults.fail(
                    "dirent.dots", _where(inode.nid, path),
                    f"directory {inode.nid}: '.' or '..' is missing or wrong",
                )  # fmt: skip
            base = path.rstrip(b"/") + b"/"
            for entry in entries:
                if entry.name not in dots:
                    child = self._entry(inode, base, entry)
                    if child is not None:
                        stack.append((child, inode.nid, base + entry.name))
        return set(self._checked)

    def _entry(self, inode: Inode, base: bytes, entry: Dirent) -> Inode | None:
        """Check what an entry names; the inode, when it is a directory to go into."""
        new = entry.nid not in self._checked
        if new:
            try:
                child: Inode | None = self._b.inode(entry.nid)
            except ImageError as error:
                child = None
                self._faults.caught("inode", _where(entry.nid, base + entry.name), error)
            self._checked[entry.nid] = child
            if child is not None:
                self._check(child, base + entry.name)
        else:
            child = self._checked[entry.nid]
        if child is None:
            return None
        if entry.file_type and _TYPES.get(entry.file_type) != stat.S_IFMT(child.mode):
            self._faults.fail(
                "dirent.file_type", _where(inode.nid, base),
                f"directory {inode.nid}: '{shown(entry.name)}' says type {entry.file_type}, "
                f"its inode has mode {child.mode:#o}",
            )  # fmt: skip
        if not child.is_dir:
            return None
        if not new:
            self._faults.fail(
                "dirent.nid", _where(inode.nid, base),
                f"directory {entry.nid} is reached twice",
            )  # fmt: skip
            return None
        return child

    def _check(self, inode: Inode, path: bytes) -> None:
        self._part("xattr", inode, path, self._xattrs)
        if inode.is_reg:
            self._part("chunk-index", inode, path, self._chunks)
        elif inode.is_symlink:
            self._link_bytes.spend(inode.size)
            self._part("symlink", inode, path, self._b.read_link)

    def _part(self, name: str, inode: Inode, path: bytes, step: Callable[[Inode], object]) -> None:
        try:
            step(inode)
        except ImageError as error:
            self._faults.caught(name, _where(inode.nid, path), error)

    def _xattrs(self, inode: Inode) -> None:
        self._xattr_bytes.spend(inode.xattr_size)
        self._b.xattrs(inode)

    def _chunks(self, inode: Inode) -> None:
        self._indexes.spend(self._b.chunk_count(inode))
        refs = list(self._b.chunks(inode, self._faults))
        if len(refs) == self._b.chunk_count(inode):
            self._b.check_chunk_format(inode, refs)
        for ref in refs:
            self._check_chunk(inode, ref)

    def _check_chunk(self, inode: Inode, ref: ChunkRef) -> None:
        """The kernel goes by the address only: it must be that of the chunk which is named."""
        if self._known is None or self._b.blobs[ref.blob_index].is_tarfs:
            return
        place = self._known.get((ref.blob_index, ref.chunk_index))
        if place is None:
            self._faults.fail(
                "chunk-table.missing", f"inode {inode.nid}",
                f"inode {inode.nid}: chunk {ref.chunk_index} of blob {ref.blob_index} "
                "is not in the chunk table",
            )  # fmt: skip
        elif place[0] != ref.flat_off or ref.size > place[1]:
            self._faults.fail(
                "chunk-index.address", f"inode {inode.nid}",
                f"inode {inode.nid}: {ref.size} bytes at {ref.flat_off:#x}, but chunk "
                f"{ref.chunk_index} of blob {ref.blob_index} has {place[1]} at {place[0]:#x}",
            )  # fmt: skip


def _where(nid: int, path: bytes) -> str:
    return f"inode {nid}, {shown(path)}"


def _chunk_places(bootstrap: Bootstrap, check: Checks) -> dict[tuple[int, int], _Place] | None:
    """(blob index, chunk index) -> place, by the chunk table; None when there is no table."""
    if not len(bootstrap.chunk_table):
        return None
    places: dict[tuple[int, int], _Place] = {}
    record = struct.Struct("<32xI8xI8xQ8xI4x")
    at = bootstrap.tables.ext.chunk_table_offset
    for blob, size, off, index in record.iter_unpack(bootstrap.chunk_table):
        if blob >= len(bootstrap.blobs):
            check.fail(
                "chunk-table.blob_index", at,
                f"chunk table: blob {blob} of {len(bootstrap.blobs)}",
            )  # fmt: skip
        places[blob, index] = (off, size)
        at += record.size
    return places
