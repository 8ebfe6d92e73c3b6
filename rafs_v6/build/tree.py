"""The tree between a source and an image: plain values, no I/O.

A hard link is one ``Node`` under several names.  Directories own ``children``;
everything else has none.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import cast

from rafs_v6.build.errors import SourceError
from rafs_v6.erofs import EROFS_NAME_LEN, SYMLINK_MAX, XATTR_PREFIXES

_XATTR_KEY_MAX = 255
_XATTR_VALUE_MAX = 65535
_XATTR_BYTES_MAX = 65536 * 4  # i_xattr_icount has 16 bits and counts words


@dataclass(frozen=True, slots=True)
class Chunk:
    """Where ``size`` bytes of a file lie; ``blob`` is a key of ``Layout``'s blob list."""

    blob: str
    index: int
    flat_off: int
    size: int


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a source file's bytes are: ``path`` is opened when ``fd`` is negative."""

    fd: int
    off: int
    path: bytes = b""


# Most nodes have neither xattrs nor entries: they share what cannot be changed.
_NO_XATTRS = cast("dict[bytes, bytes]", MappingProxyType({}))
_NO_CHILDREN = cast("dict[bytes, Node]", MappingProxyType({}))


@dataclass(slots=True, eq=False)
class Node:
    """Attributes of an inode; times in seconds and nanoseconds, ``rdev`` as ``os.makedev``.

    ``xattrs`` is replaced as a whole; only directories have ``children`` to add to.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    mtime_nsec: int = 0
    size: int = 0
    rdev: int = 0
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=lambda: _NO_XATTRS)
    children: dict[bytes, Node] = field(default_factory=lambda: _NO_CHILDREN)
    extent: Extent | None = None
    chunks: list[Chunk] = field(default_factory=list)
    ino: int = 0  # Layout's

    def __post_init__(self) -> None:
        if self.is_dir and self.children is _NO_CHILDREN:
            self.children = {}
        if not self.xattrs:
            self.xattrs = _NO_XATTRS

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_reg(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)


def sorted_children(node: Node) -> list[tuple[bytes, Node]]:
    return sorted(node.children.items())


def traverse(root: Node) -> Iterator[tuple[bytes, Node]]:
    """(path, node): children that are no directories first, then each directory (sheet 1.15)."""
    yield b"/", root
    stack = [(b"", root)]
    while stack:
        path, node = stack.pop()
        directories = []
        for name, child in sorted_children(node):
            below = path + b"/" + name
            yield below, child
            if child.is_dir:
                directories.append((below, child))
        stack += reversed(directories)


def unread_files(nodes: Iterable[Node]) -> list[Node]:
    """The regular files that have data in a source, each once though it has many names."""
    # A dictionary keeps the order of first names.
    return list(dict.fromkeys(n for n in nodes if n.extent is not None and n.size))


def check_name(name: bytes, where: bytes) -> None:
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise SourceError(f"{where!r}: {name!r} is no file name")
    if len(name) > EROFS_NAME_LEN:
        raise SourceError(f"{where!r}: a name of {len(name)} bytes; {EROFS_NAME_LEN} is the limit")


def check_node(node: Node, where: bytes) -> None:
    """What the format cannot hold is refused here, before anything is written."""
    if node.is_symlink:
        if not 0 < len(node.target) < SYMLINK_MAX or b"\0" in node.target:
            raise SourceError(f"{where!r}: a symbolic link of {len(node.target)} bytes")
        node.size = len(node.target)
    total = 0
    for key, value in node.xattrs.items():
        if xattr_index(key) is None:
            raise SourceError(f"{where!r}: the format has no xattr {key!r}")
        if len(key) > _XATTR_KEY_MAX or len(value) > _XATTR_VALUE_MAX:
            raise SourceError(f"{where!r}: xattr {key[:40]!r} is too long")
        total += len(key) + len(value) + 8
    if total > _XATTR_BYTES_MAX - 64:
        raise SourceError(f"{where!r}: {total} bytes of xattrs")
    for number, what in ((node.uid, "uid"), (node.gid, "gid")):
        if not 0 <= number < 1 << 32:
            raise SourceError(f"{where!r}: {what} {number} does not fit")
    if not -(1 << 63) <= node.mtime < 1 << 63:
        raise SourceError(f"{where!r}: modification time {node.mtime} does not fit")


def xattr_index(key: bytes) -> tuple[int, bytes] | None:
    """(name index, rest of the name), or None when the format has no such prefix (1.12)."""
    for index, prefix in XATTR_PREFIXES.items():
        whole = not prefix.endswith(b".")
        if (key == prefix) if whole else key.startswith(prefix):
            return index, key[len(prefix) :]
    return None
