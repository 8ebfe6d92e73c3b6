"""The tree between a source and an image, by columns: plain values, no I/O.

A tree of Python objects takes 1 KB a file, columns take 70 bytes.  A row is a
name; rows are in the order in which the format numbers inodes (format.md 1.15): the
entries of a directory side by side, sorted, then what is below each of them.
"""

from __future__ import annotations

import contextlib
import os
import stat
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from typing import Any

from rafs_v6._writer import ffi, lib
from rafs_v6.errors import shown
from rafs_v6.format.erofs import (
    EROFS_NAME_LEN,
    SYMLINK_MAX,
)
from rafs_v6.values import dataclass, field
from rafs_v6.writer.errors import SourceError
from rafs_v6.writer.locations import ChunkLocations
from rafs_v6.writer.xattrs import pack_xattrs

_XATTR_VALUE_MAX = 65535
_XATTR_BYTES_MAX = 65536 * 4  # i_xattr_icount has 16 bits and counts words
NONE: int = lib.RAFS_TREE_NONE
ROOT = 0
IMPLIED: int = lib.RAFS_ROW_IMPLIED


@dataclass(slots=True)
class Node:
    """What is added to a tree; times in seconds and nanoseconds, ``rdev`` as ``os.makedev``."""

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    mtime_nsec: int = 0
    size: int = 0
    rdev: int = 0
    target: bytes = b""
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


class Tree:
    """Columns with a value for each row; row 0 is the root.

    ``size``: bytes, or of a directory its entries.  ``at``: by type, the first
    entry's row, the start of a link's target in ``targets``, a device number as it
    is on disk, or the first of a file's ``refs`` (``NONE``: its data are not stored
    yet); ``refs`` are numbers of ``locations``, one for each ``chunk_size`` bytes.
    ``link``: the row of the first name of the same inode, mostly the row itself.
    ``extent_at``: where a file's data are in the source, as that knows it.  ``flags``: ``IMPLIED``
    of a directory that a tar does not list: over a lower image it is as that has it.
    """

    def __init__(self, chunk_size: int = 0) -> None:
        self.mode = array("H")
        self.uid, self.gid, self.mtime_nsec = array("I"), array("I"), array("I")
        self.mtime, self.size = array("q"), array("Q")
        self.at, self.parent, self.link, self.xattr = array("I"), array("I"), array("I"), array("I")
        self.flags = array("B")
        self.extents = array("Q")  # of the rows up to the last that has one
        self.name_off, self.names = array("I", [0]), bytearray()
        self.targets = bytearray()
        self.xattr_sets: list[Mapping[bytes, bytes]] = [{}]
        self.packed_xattrs = {b"": 0}  # to the number of the set, in order
        self._last_xattrs: tuple[Mapping[bytes, bytes], int] = (self.xattr_sets[0], 0)
        self.refs = array("I")
        self.locations = ChunkLocations()
        self.chunk_size = chunk_size

    def __len__(self) -> int:
        return len(self.mode)

    def add(self, parent: int, name: bytes, node: Node, flags: int = 0) -> int:
        """A new row at the end; its number.  The root comes first, with itself as parent."""
        at, kind = NONE, stat.S_IFMT(node.mode)
        if kind == stat.S_IFLNK:
            at = len(self.targets)
            self.targets += node.target
        elif kind != stat.S_IFREG:
            major, minor = os.major(node.rdev), os.minor(node.rdev)
            at = (minor & 0xFF) | major << 8 | (minor & ~0xFF) << 12
        row = self._append(
            parent, name, node.mode, node.uid, node.gid, node.mtime, node.mtime_nsec,
            0 if kind == stat.S_IFDIR else node.size, at,
        )  # fmt: skip
        if node.xattrs:
            self.set_xattrs(row, node.xattrs)
        self.flags[row] = flags
        return row

    def add_entries(self, parent: int, scan: Any) -> int:
        """All entries of a ``struct rafs_scan *``, as far as that knows them: links have no targets
        yet, and names of one inode are files of their own.  The first one's row."""
        first, count = len(self.mode), scan.n
        if not count:
            return first
        for name in ("mode", "uid", "gid", "mtime", "mtime_nsec", "size", "at"):
            column = getattr(self, name)
            column.frombytes(ffi.buffer(getattr(scan, name), count * column.itemsize))
        rows = range(first, first + count)
        self.parent.extend(repeat(parent, count))
        self.link.extend(rows)
        for column in (self.xattr, self.flags):
            column.frombytes(bytes(count * column.itemsize))
        start = len(self.names)
        self.name_off.extend(start + end for end in ffi.unpack(scan.name_end, count))
        self.names += ffi.buffer(scan.names, scan.name_end[count - 1])
        self.at[parent], self.size[parent] = first, count
        return first

    def make_link(self, row: int, first: int) -> None:
        """``row`` is another name of the file in row ``first``."""
        for column in (
            self.mode, self.uid, self.gid, self.mtime, self.mtime_nsec, self.size, self.at,
            self.xattr, self.flags,
        ):  # fmt: skip
            column[row] = column[first]
        self.link[row] = first

    def describe(self, row: int, node: Node) -> None:
        """Once more what an entry of ``add_entries`` is, with its target and xattrs."""
        self.mode[row], self.uid[row], self.gid[row] = node.mode, node.uid, node.gid
        self.mtime[row], self.mtime_nsec[row] = node.mtime, node.mtime_nsec
        self.size[row] = 0 if stat.S_ISDIR(node.mode) else node.size
        if stat.S_ISLNK(node.mode):
            self.at[row] = len(self.targets)
            self.targets += node.target
        if node.xattrs:
            self.set_xattrs(row, node.xattrs)

    def add_link(self, parent: int, name: bytes, first: int) -> int:
        """Another name of the file in row ``first``."""
        row = self.copy(self, first, parent, name)
        self.link[row] = first
        return row

    def copy(self, source: Tree, row: int, parent: int, name: bytes) -> int:
        """A new row like ``row`` of ``source``, with its chunks, but not its entries."""
        kind, at, size = stat.S_IFMT(source.mode[row]), source.at[row], source.size[row]
        if source is not self:
            if kind == stat.S_IFLNK:
                target = source.target(row)
                at = len(self.targets)
                self.targets += target
            elif kind == stat.S_IFREG and at != NONE:
                at = self._copy_refs(source, row)
        if kind == stat.S_IFDIR:
            at = size = 0
        new = self._append(
            parent, name, source.mode[row], source.uid[row], source.gid[row], source.mtime[row],
            source.mtime_nsec[row], size, at,
        )  # fmt: skip
        if source.xattr[row]:
            self.set_xattrs(new, source.xattr_sets[source.xattr[row]])
        self.flags[new] = source.flags[row]
        self.set_extent(new, source.extent_at(row))
        return new

    def _append(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, mtime: int, nsec: int,
        size: int, at: int,
    ) -> int:  # fmt: skip
        row = len(self.mode)
        self.mode.append(mode)
        self.uid.append(uid)
        self.gid.append(gid)
        self.mtime.append(mtime)
        self.mtime_nsec.append(nsec)
        self.size.append(size)
        self.at.append(at)
        self.parent.append(parent)
        self.link.append(row)
        self.xattr.append(0)
        self.flags.append(0)
        self.names += name
        self.name_off.append(len(self.names))
        if row:
            if not self.size[parent]:
                self.at[parent] = row
            self.size[parent] += 1
        return row

    def _copy_refs(self, source: Tree, row: int) -> int:
        at, locations = len(self.refs), source.locations
        for location in source.chunks(row):
            self.refs.append(self.locations.add(*locations.key(location), locations.flat[location]))
        return at

    def set_xattrs(self, row: int, xattrs: Mapping[bytes, bytes]) -> None:
        if xattrs is not self._last_xattrs[0]:
            number = self.packed_xattrs.setdefault(pack_xattrs(xattrs), len(self.xattr_sets))
            if number == len(self.xattr_sets):
                self.xattr_sets.append(xattrs)
            self._last_xattrs = xattrs, number  # a tar may say once what all its files have
        self.xattr[row] = self._last_xattrs[1]

    def extent_at(self, row: int) -> int:
        return self.extents[row] if row < len(self.extents) else 0

    def set_extent(self, row: int, extent: int) -> None:
        if extent or row < len(self.extents):
            missing = row + 1 - len(self.extents)
            self.extents.frombytes(bytes(max(0, missing) * self.extents.itemsize))
            self.extents[row] = extent

    # -- what a row is -------------------------------------------------------------------------

    def is_dir(self, row: int) -> bool:
        return stat.S_ISDIR(self.mode[row])

    def is_file(self, row: int) -> bool:
        """A regular file's first name."""
        return stat.S_ISREG(self.mode[row]) and self.link[row] == row

    def name(self, row: int) -> bytes:
        return bytes(self.names[self.name_off[row] : self.name_off[row + 1]])

    def target(self, row: int) -> bytes:
        return bytes(self.targets[self.at[row] : self.at[row] + self.size[row]])

    def children(self, row: int) -> range:
        return range(self.at[row], self.at[row] + self.size[row]) if self.is_dir(row) else range(0)

    def chunks(self, row: int) -> array[int]:
        """The locations of a file's chunks, as they follow each other in it."""
        at = self.at[row]
        count = -(-self.size[row] // self.chunk_size) if at != NONE else 0
        return self.refs[at : at + count]

    def path(self, row: int) -> bytes:
        parts = []
        while row != ROOT:
            parts.append(self.name(row))
            row = self.parent[row]
        return b"/" + b"/".join(reversed(parts))

    def find(self, path: bytes) -> int | None:
        row = ROOT
        for part in path.split(b"/"):
            if part:
                child = self.child(row, part)
                if child is None:
                    return None
                row = child
        return row

    def child(self, row: int, name: bytes) -> int | None:
        """The entry ``name`` of the directory in ``row``."""
        below = self.children(row)
        at = bisect_left(below, name, key=self.name)
        return below[at] if at < len(below) and self.name(below[at]) == name else None

    def below(self, row: int) -> Iterator[int]:
        """``row`` and all that is below it, in order."""
        yield row
        pending = [row]
        while pending:
            children = self.children(pending.pop())
            yield from children
            pending += [r for r in reversed(children) if self.is_dir(r)]

    def unread(self, early: Iterable[int] = ()) -> array[int]:
        """The files that have data in a source, each once though it has many names; those of the
        rows ``early`` before the others."""
        seen, files = bytearray(len(self)), array("I")
        for row in early:
            first = self.link[row]
            is_file = stat.S_ISREG(self.mode[row]) and self.size[row] and self.at[first] == NONE
            if is_file and not seen[first]:
                seen[first] = 1
                files.append(first)
        rest = array("I", bytes(4 * len(self)))
        with self.in_c("mode", "size", "at", "link") as tree, \
                ffi.from_buffer("uint8_t[]", seen) as known, \
                ffi.from_buffer("uint32_t[]", rest) as found:  # fmt: skip
            count = lib.rafs_build_unread(tree, known, found)
        del rest[count:]
        if not files:
            return rest  # a copy would have a million numbers
        return files + rest

    @contextlib.contextmanager
    def in_c(self, *columns: str) -> Iterator[Any]:
        """``struct rafs_tree *`` with these columns, which cannot grow until the end."""
        tree = ffi.new("struct rafs_tree *")
        tree.n, tree.chunk_size = len(self), self.chunk_size
        with contextlib.ExitStack() as held:
            for name in columns:
                column = held.enter_context(column_in_c(getattr(self, name)))
                setattr(tree, "name" if name == "name_off" else name, column)
            yield tree


_CTYPES = {
    "B": "uint8_t[]", "H": "uint16_t[]", "I": "uint32_t[]", "Q": "uint64_t[]", "q": "int64_t[]",
}  # fmt: skip


def column_in_c(values: array[int] | bytearray | bytes) -> Any:
    """Its values where they are, until it is released."""
    kind = values.typecode if isinstance(values, array) else "B"
    return ffi.from_buffer(_CTYPES[kind], values)


def used_names(tree: Tree, first: Iterable[str] = ()) -> list[str]:
    """The blobs that files of ``tree`` refer to: those of ``first``, then in order of use."""
    names, blob = tree.locations.names, tree.locations.blob
    found = dict.fromkeys(
        blob[location]
        for row in range(len(tree))
        if tree.is_file(row)
        for location in tree.chunks(row)
    )
    used = dict.fromkeys(names[number] for number in found)
    return list(dict.fromkeys(name for name in first if name in used) | used)


def check_name(name: bytes, where: bytes) -> None:
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise SourceError(f"{shown(where)}: {shown(name)!r} is not a file name")
    if len(name) > EROFS_NAME_LEN:
        raise SourceError(
            f"{shown(where)}: a name of {len(name)} bytes; {EROFS_NAME_LEN} is the limit"
        )


def check_node(node: Node, where: bytes) -> None:
    """Refuse what the format cannot hold, before anything is written.

    ``node.xattrs`` have names that Linux knows (``LinuxXattrs``).
    """
    if stat.S_ISLNK(node.mode):
        if not 0 < len(node.target) < SYMLINK_MAX or b"\0" in node.target:
            raise SourceError(f"{shown(where)}: a symbolic link of {len(node.target)} bytes")
        node.size = len(node.target)
    total = 0
    for key, value in node.xattrs.items():
        if len(value) > _XATTR_VALUE_MAX:
            raise SourceError(f"{shown(where)}: xattr {shown(key)} of {len(value)} bytes")
        total += len(key) + len(value) + 8
    if total > _XATTR_BYTES_MAX - 64:
        raise SourceError(f"{shown(where)}: {total} bytes of xattrs")
    for number, what in ((node.uid, "uid"), (node.gid, "gid")):
        if not 0 <= number < (1 << 32) - 1:  # which means "no owner" to Linux
            raise SourceError(f"{shown(where)}: {what} {number} does not fit")
    if not -(1 << 63) <= node.mtime < 1 << 63:
        raise SourceError(f"{shown(where)}: modification time {node.mtime} does not fit")
