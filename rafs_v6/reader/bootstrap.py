"""A bootstrap: the tree of an image, as the kernel's EROFS driver will see it.

``Bootstrap`` does no I/O after it was opened, and never reads outside its
bytes.  Cost: opening, one pass over the tables.  Its tree is checked as far as it
is looked at; ``rafs_v6.validate`` checks all of it.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import mmap
import os
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

from rafs_v6.errors import ImageError, NotAFileError, shown
from rafs_v6.faults import STRICT, Checks
from rafs_v6.format.blob_table import BlobInfo
from rafs_v6.format.erofs import (
    CHUNK_INDEX,
    CHUNK_INDEX_SIZE,
    CHUNK_RECORD_SIZE,
    DIRENT,
    EROFS_CHUNK_FORMAT_BLKBITS_MASK,
    EROFS_CHUNK_FORMAT_INDEXES,
    EROFS_DIRENT_SIZE,
    EROFS_INODE_FLAT_INLINE,
    EROFS_NAME_LEN,
    EROFS_XATTR_IBODY_SIZE,
    XATTR_ENTRY,
    XATTR_PREFIXES,
    ChunkRecord,
    round_up,
)
from rafs_v6.format.tables import Tables, read_tables
from rafs_v6.reader.inode import ChunkRef, Dirent, Inode, read_inode

_XATTR_NAME_MAX = 255


class Bootstrap:
    """``Bootstrap.from_file`` or ``from_bytes``; superblocks and tables are checked then,
    the tree as it is walked, all of it by ``rafs_v6.validate.validate``.

    ``data``: all bytes.  ``block_size``, ``chunk_size``: bytes.  ``blobs``: the blob table.
    """

    def __init__(
        self, data: memoryview, check: Checks = STRICT, *, mapped: mmap.mmap | None = None
    ) -> None:
        self.data = data
        self._mapped = mapped
        self.tables: Tables = read_tables(data, check)
        self.block_size: int = self.tables.block_size
        self.chunk_size: int = self.tables.ext.chunk_size
        self.blobs: tuple[BlobInfo, ...] = self.tables.blobs
        self.prefetch_nids = self.tables.prefetch_nids
        self.chunk_table = self.tables.chunk_table
        self._meta = self.tables.super_block.meta_blkaddr * self.block_size
        self.root = self.inode(self.tables.super_block.root_nid)
        if not self.root.is_dir:
            raise ImageError(f"root nid {self.root.nid} is not a directory")

    @classmethod
    def from_bytes(cls, data: bytes, check: Checks = STRICT) -> Self:
        return cls(memoryview(data), check)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], check: Checks = STRICT) -> Self:
        """The file is mapped: it must not change while this lives."""
        mapped = _mapped(path)
        return cls(memoryview(mapped), check, mapped=mapped)

    def mapped_again(self, path: str | os.PathLike[str]) -> Self:
        """The same file, which has not changed, once more: a tenth of the time of ``from_file``.
        This one may be closed."""
        mapped = _mapped(path)
        again = copy(self)
        again._mapped, again.data = mapped, memoryview(mapped)
        start = self.tables.ext.chunk_table_offset
        again.chunk_table = again.data[start : start + self.tables.ext.chunk_table_size]
        again.tables = replace(self.tables, chunk_table=again.chunk_table)
        return again

    def __repr__(self) -> str:
        return f"<Bootstrap of chunks of {self.chunk_size} bytes, {len(self.blobs)} blobs>"

    def close(self) -> None:
        """Let go of the bytes.  Whoever uses the bootstrap afterwards gets a ``ValueError``."""
        self.chunk_table.release()
        self.data.release()
        if self._mapped is not None:
            with contextlib.suppress(BufferError):  # somebody reads it now; the last one closes it
                self._mapped.close()

    def chunk_records(self) -> Iterator[tuple[int, ChunkRecord]]:
        """(byte of the bootstrap, record), in the order of the chunk table (format.md 1.17)."""
        base = self.tables.ext.chunk_table_offset
        for at in range(0, len(self.chunk_table), CHUNK_RECORD_SIZE):
            yield base + at, ChunkRecord.unpack(self.chunk_table, at)

    # -- inodes ------------------------------------------------------------------------------

    def _bytes(self, offset: int, size: int, what: str) -> memoryview:
        if offset < 0 or size < 0 or offset + size > len(self.data):
            raise ImageError(f"{what}: {size} bytes at {offset:#x} lie outside the bootstrap")
        return self.data[offset : offset + size]

    def inode(self, nid: int) -> Inode:
        """Raises ``ImageError`` where there is no valid one."""
        return read_inode(self.data, self._meta, nid)

    def _flat_data(self, inode: Inode) -> tuple[memoryview, memoryview]:
        """Whole blocks and inline tail of a directory or symbolic link."""
        what = f"data of inode {inode.nid}"
        bs = self.block_size
        full = inode.size
        tail = self.data[:0]
        if inode.layout == EROFS_INODE_FLAT_INLINE:
            full -= inode.size % bs
            tail = self._bytes(inode.tail, inode.size % bs, what)
            if len(tail) and inode.tail // bs != (inode.tail + len(tail) - 1) // bs:
                raise ImageError(f"{what}: the inline tail crosses a block")
        return self._bytes(inode.i_u * bs if full else 0, full, what), tail

    # -- directories, links, xattrs ------------------------------------------------------------

    def read_dir(self, inode: Inode) -> list[Dirent]:
        """All entries, "." and ".." too, in the order of the image, which is checked."""
        if not inode.is_dir:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", f"inode {inode.nid}")
        whole, tail = self._flat_data(inode)
        entries: list[Dirent] = []
        for part in (whole, tail):
            for at in range(0, len(part), self.block_size):
                self._dirent_block(inode.nid, part[at : at + self.block_size], entries)
        return entries

    def child(self, inode: Inode, name: bytes) -> Inode | None:
        """The entry ``name`` of a directory, or None, found as the kernel finds it: by halves."""
        whole, tail = self._flat_data(inode)
        bs = self.block_size
        blocks = [whole[at : at + bs] for at in range(0, len(whole), bs)]
        if len(tail):
            blocks.append(tail)
        at = bisect.bisect_right(blocks, name, key=self._first_name) - 1
        if at < 0:
            return None
        block = blocks[at]
        count = self._count(block)
        at = bisect.bisect_left(range(count), name, key=partial(_name, block))
        if at == count or _name(block, at) != name:
            return None
        return self.inode(DIRENT.unpack_from(block, at * EROFS_DIRENT_SIZE)[0])

    def _first_name(self, block: memoryview) -> bytes:
        self._count(block)
        return _name(block, 0)

    def _count(self, block: memoryview) -> int:
        """Entries of a directory's block."""
        start = DIRENT.unpack_from(block)[1] if len(block) >= EROFS_DIRENT_SIZE else 0
        if start % EROFS_DIRENT_SIZE or not EROFS_DIRENT_SIZE <= start <= len(block):
            raise ImageError(f"a directory block of {len(block)} bytes with its names at {start}")
        return int(start) // EROFS_DIRENT_SIZE

    def _dirent_block(self, nid: int, block: memoryview, entries: list[Dirent]) -> None:
        what = f"directory {nid}"
        if len(block) < EROFS_DIRENT_SIZE:
            raise ImageError(f"{what}: a block of {len(block)} bytes")
        first = DIRENT.unpack_from(block)[1]
        if first % EROFS_DIRENT_SIZE or not EROFS_DIRENT_SIZE <= first <= len(block):
            raise ImageError(f"{what}: first name at {first}")
        heads = list(DIRENT.iter_unpack(block[:first]))
        previous = entries[-1].name if entries else b""
        for i, (child, start, file_type, _) in enumerate(heads):
            last = i + 1 == len(heads)
            end = len(block) if last else heads[i + 1][1]
            if not first <= start <= end <= len(block):
                raise ImageError(f"{what}: name {i} lies outside its block")
            name = bytes(block[start:end])
            if last:
                name = name.split(b"\0", 1)[0]
            if not name or len(name) > EROFS_NAME_LEN or b"/" in name or b"\0" in name:
                raise ImageError(f"{what}: {_quoted(name)} is not a file name")
            if name <= previous:
                raise ImageError(
                    f"{what}: {_quoted(name)} is out of order behind {_quoted(previous)}"
                )
            previous = name
            entries.append(Dirent(name, child, file_type))

    def read_link(self, inode: Inode) -> bytes:
        if not inode.is_symlink:
            raise OSError(errno.EINVAL, "not a symbolic link", f"inode {inode.nid}")
        whole, tail = self._flat_data(inode)
        target = bytes(whole) + bytes(tail)
        if b"\0" in target:
            raise ImageError(f"inode {inode.nid}: the target has a NUL inside")
        return target

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """Full names to values."""
        found: dict[bytes, bytes] = {}
        if not inode.xattr_size:
            return found
        what = f"xattrs of inode {inode.nid}"
        start = inode.offset + inode.body_size
        area = self._bytes(start, inode.xattr_size, what)
        if area[4]:
            raise ImageError(f"{what}: shared ones, which RAFS does not have")
        at = EROFS_XATTR_IBODY_SIZE
        while at < len(area):
            if at + XATTR_ENTRY.size > len(area):
                raise ImageError(f"{what}: cut short")
            name_len, index, value_len = XATTR_ENTRY.unpack_from(area, at)
            at += XATTR_ENTRY.size
            if index not in XATTR_PREFIXES or at + name_len + value_len > len(area):
                raise ImageError(f"{what}: an entry of type {index} that does not fit")
            name = XATTR_PREFIXES[index] + bytes(area[at : at + name_len])
            if len(name) > _XATTR_NAME_MAX or b"\0" in name or name in found:
                raise ImageError(f"{what}: {_quoted(name)} twice, or not a name")
            found[name] = bytes(area[at + name_len : at + name_len + value_len])
            at = round_up(at + name_len + value_len, 4)
        return found

    # -- data ------------------------------------------------------------------------------------

    def chunk_count(self, inode: Inode) -> int:
        return -(-inode.size // self.chunk_size)

    def chunks(self, inode: Inode, check: Checks = STRICT) -> Iterator[ChunkRef]:
        """The chunks of a regular file, in file order; one a ``chunk_size`` bytes.

        With a collecting ``check`` the faulty ones are left out.
        """
        if not inode.is_reg:
            raise NotAFileError(errno.EINVAL, "not a regular file", f"inode {inode.nid}")
        what = f"chunk indexes of inode {inode.nid}"
        count = self.chunk_count(inode)
        start = round_up(inode.tail, CHUNK_INDEX_SIZE)
        table = self._bytes(start, count * CHUNK_INDEX_SIZE, what)
        left = inode.size
        for i, (low, blob, high, block) in enumerate(CHUNK_INDEX.iter_unpack(table)):
            size = min(left, self.chunk_size)
            left -= size
            index, flat_off = high << 16 | low, block * self.block_size
            fault = self._index_fault(blob, index, flat_off, size)
            if fault is None:
                yield ChunkRef(blob - 1, index, flat_off, size)
            else:
                name, text = fault
                check.fail(name, start + i * CHUNK_INDEX_SIZE, f"{what}: {text}")

    def _index_fault(
        self, blob: int, index: int, flat_off: int, size: int
    ) -> tuple[str, str] | None:
        if not 1 <= blob <= len(self.blobs):
            return "chunk-index.device", f"blob {blob - 1} of {len(self.blobs)}"
        info = self.blobs[blob - 1]
        if index >= info.chunk_count:
            return "chunk-index.index", f"chunk {index} of {info.chunk_count}"
        if flat_off + size > info.uncompressed_size:
            return "chunk-index.address", f"data at {flat_off:#x} lie outside blob {blob - 1}"
        return None

    def check_chunk_format(self, inode: Inode, refs: list[ChunkRef]) -> None:
        """Would the kernel, which obeys the format word, read what the indexes say?

        format.md 1.7.
        """
        what = f"inode {inode.nid}"
        word = inode.i_u
        if word & ~(EROFS_CHUNK_FORMAT_BLKBITS_MASK | EROFS_CHUNK_FORMAT_INDEXES) or not (
            word & EROFS_CHUNK_FORMAT_INDEXES
        ):
            raise ImageError(f"{what}: chunk format {word:#x}")
        bits = self.tables.super_block.blkszbits + (word & EROFS_CHUNK_FORMAT_BLKBITS_MASK)
        if 1 << bits == self.chunk_size or len(refs) == 0:
            return
        first = refs[0]
        contiguous = all(
            r.blob_index == first.blob_index and r.flat_off == first.flat_off + i * self.chunk_size
            for i, r in enumerate(refs)
        )
        if 1 << bits < self.chunk_size or 1 << bits < inode.size or not contiguous:
            raise ImageError(f"{what}: chunk format of 2^{bits} bytes does not fit its chunks")

    # -- the tree --------------------------------------------------------------------------------

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """(path, inode) of everything from b"/" on, parents before children."""
        seen = {self.root.nid}
        stack: list[tuple[bytes, Inode]] = [(b"/", self.root)]
        while stack:
            path, inode = stack.pop()
            yield path, inode
            if not inode.is_dir:
                continue
            base = path if path == b"/" else path + b"/"
            children = []
            for entry in self.read_dir(inode):
                if entry.name in (b".", b".."):
                    continue
                child = self.inode(entry.nid)
                if child.is_dir:
                    if child.nid in seen:
                        raise ImageError(f"directory {child.nid} is reached twice")
                    seen.add(child.nid)
                children.append((base + entry.name, child))
            stack.extend(reversed(children))

    def lookup(self, path: bytes | str) -> Inode:
        """No link is followed, not on the way either (``Image.lookup`` does that).

        ``FileNotFoundError``, ``NotADirectoryError``.
        """
        raw = path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape")
        inode = self.root
        for name in raw.split(b"/"):
            if not name:
                continue
            if not inode.is_dir:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            child = self.child(inode, name)
            if child is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            inode = child
        return inode

    def kernel_refusal(self, transport: str) -> str | None:
        """Why the kernel would not mount this valid image over ``transport``, or None."""
        if transport == "cachefiles" and self.block_size != mmap.PAGESIZE:
            return (
                f"blocks of {self.block_size} bytes (tarfs); "
                "over cachefiles they must be as large as a page"
            )
        if self.block_size > mmap.PAGESIZE:
            return f"blocks of {self.block_size} bytes are larger than a page"
        return None


def _mapped(path: str | os.PathLike[str]) -> mmap.mmap:
    with Path(path).open("rb") as f:
        if not os.fstat(f.fileno()).st_size:
            raise ImageError("the bootstrap is empty")
        return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)


def _name(block: memoryview, at: int) -> bytes:
    """Of entry ``at`` of a directory's block."""
    start = DIRENT.unpack_from(block, at * EROFS_DIRENT_SIZE)[1]
    end = len(block)
    if (at + 1) * EROFS_DIRENT_SIZE < DIRENT.unpack_from(block)[1]:
        end = DIRENT.unpack_from(block, (at + 1) * EROFS_DIRENT_SIZE)[1]
    return bytes(block[start:end]).split(b"\0", 1)[0]


def _quoted(name: bytes) -> str:
    return f"'{shown(name[:EROFS_NAME_LEN])}'"
