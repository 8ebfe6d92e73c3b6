"""Directories and tars as trees.  File data are not read here, only found (``Extent``).

A tar is hostile: names that leave the root, links to what is not there, a header
that does not parse and data that are not there are refused.  GNU sparse members
go to an unnamed temporary file first, where a source has room for their holes.
"""

from __future__ import annotations

import os
import stat
import tarfile
import tempfile
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import IO, cast

from rafs_v6.build.errors import SourceError
from rafs_v6.build.tree import Extent, Node, check_name, check_node

_BLOCK = 512
_COPY = 1 << 20
# Members that eStargz adds to a layer; they are the format, not the layer.
_ESTARGZ_OWN = (b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark")
_XATTR_PAX = "SCHILY.xattr."
_TYPES = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.CONTTYPE: stat.S_IFREG,
    tarfile.GNUTYPE_SPARSE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


def read_directory(path: Path) -> Node:
    """The tree below ``path``; names of one inode become one node."""
    top = os.fsencode(path)
    if not stat.S_ISDIR(os.stat(top).st_mode):
        raise SourceError(f"{path}: not a directory")
    seen: dict[tuple[int, int], Node] = {}
    root = _from_stat(top)
    # The time of a source's top directory is that of the copy, not of the image (sheet 1.13).
    root.mtime = root.mtime_nsec = 0
    pending = [(top, root)]
    while pending:
        where, node = pending.pop()
        for entry in os.scandir(where):
            check_name(entry.name, where)
            st = entry.stat(follow_symlinks=False)
            key = (st.st_dev, st.st_ino)
            child = seen.get(key) if stat.S_ISREG(st.st_mode) else None
            if child is None:
                child = _from_stat(entry.path)
                if child.is_reg and st.st_nlink > 1:
                    seen[key] = child
            node.children[entry.name] = child
            if child.is_dir:
                pending.append((entry.path, child))
    return root


def _from_stat(path: bytes) -> Node:
    st = os.lstat(path)
    seconds, nsec = divmod(st.st_mtime_ns, 10**9)
    node = Node(st.st_mode, st.st_uid, st.st_gid, seconds, nsec, rdev=st.st_rdev)
    if node.is_symlink:
        node.target = os.readlink(path)
    elif node.is_reg:
        node.size = st.st_size
        node.extent = Extent(-1, 0, path)
    # System attributes of the file system's own (NFS, SMB ACLs) have no place in the format.
    xattrs = {}
    for key in os.listxattr(path, follow_symlinks=False):
        name = os.fsencode(key)
        if not name.startswith(b"system.") or b"posix_acl" in name:
            xattrs[name] = os.getxattr(path, key, follow_symlinks=False)
    if xattrs:
        node.xattrs = xattrs
    check_node(node, path)
    return node


class TarSource:
    """The tree of a tar.  Its extents point into ``tar`` and a file of its own: close it last.

    ``refers``: the data must be in the tar as they are, so sparse members are refused.
    """

    def __init__(self, tar: IO[bytes], *, estargz: bool = False, refers: bool = False) -> None:
        self._tar, self._refers = tar, refers
        self._sparse: IO[bytes] | None = None
        self._size = os.fstat(tar.fileno()).st_size
        self.root = Node(stat.S_IFDIR | 0o755)
        try:
            self._read()
            if estargz:
                for name in _ESTARGZ_OWN:
                    self.root.children.pop(name, None)
        except (tarfile.TarError, EOFError, UnicodeError) as error:
            raise SourceError(f"the tar does not parse: {error}") from error

    def close(self) -> None:
        if self._sparse is not None:
            self._sparse.close()

    def _read(self) -> None:
        end = 0
        with tarfile.open(
            fileobj=self._tar, mode="r:", encoding="utf-8", errors="surrogateescape"
        ) as tar:
            for info in tar:
                self._entry(info)
                tar.members.clear()  # type: ignore[attr-defined] # or all headers stay in memory
                end = tar.offset
        # tarfile takes a header that does not parse for the end of the archive.
        if any(os.pread(self._tar.fileno(), _BLOCK, end)):
            raise SourceError(f"the tar does not parse: no header at byte {end}")

    def _entry(self, info: tarfile.TarInfo) -> None:
        name = _raw(info.name)
        parts = _parts(name)
        if info.islnk():
            node = self._find(_parts(_raw(info.linkname)))
            if node is None or node.is_dir:
                raise SourceError(f"{name!r}: a hard link to {info.linkname!r}, which is no file")
            self._add(parts, node, name)
            return
        kind = _TYPES.get(info.type)
        if kind is None:
            raise SourceError(f"{name!r}: a tar entry of type {info.type!r}")
        seconds, nsec = _mtime(info, name)
        node = Node(kind | stat.S_IMODE(info.mode), info.uid, info.gid, seconds, nsec)
        xattrs = {
            _raw(key[len(_XATTR_PAX) :]): _raw(value)
            for key, value in info.pax_headers.items()
            if key.startswith(_XATTR_PAX)
        }
        if xattrs:
            node.xattrs = xattrs
        if kind == stat.S_IFLNK:
            node.target = _raw(info.linkname)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            if not (0 <= info.devmajor < 1 << 12 and 0 <= info.devminor < 1 << 20):
                raise SourceError(f"{name!r}: device {info.devmajor}:{info.devminor}")
            node.rdev = os.makedev(info.devmajor, info.devminor)
        elif kind == stat.S_IFREG:
            node.size = info.size
            node.extent = self._extent(info, name)
        check_node(node, name)
        self._add(parts, node, name)

    def _extent(self, info: tarfile.TarInfo, name: bytes) -> Extent:
        # The stubs call it an int; it is what tarfile read from the header or the PAX record.
        pieces = cast("list[tuple[int, int]] | None", info.sparse)
        if pieces is None:
            if info.offset_data + info.size > self._size:
                raise SourceError(f"{name!r}: the tar ends inside its data")
            return Extent(self._tar.fileno(), info.offset_data)
        if self._refers:
            raise SourceError(
                f"{name!r}: a sparse file, whose data an image cannot refer to; choose a type"
                " that stores them: tar-rafs, targz-rafs"
            )
        if self._sparse is None:
            self._sparse = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        fd = self._sparse.fileno()
        start, source = os.fstat(fd).st_size, info.offset_data
        os.ftruncate(fd, start + info.size)
        for at, length in pieces:
            if at < 0 or length < 0 or at + length > info.size:
                raise SourceError(f"{name!r}: a sparse piece lies outside the file")
            for done in range(0, length, _COPY):
                want = min(_COPY, length - done)
                data = os.pread(self._tar.fileno(), want, source + done)
                if len(data) != want:
                    raise SourceError(f"{name!r}: the tar ends inside its data")
                os.pwrite(fd, data, start + at + done)
            source += length
        return Extent(fd, start)

    def _find(self, parts: list[bytes]) -> Node | None:
        node: Node | None = self.root
        for part in parts:
            node = node.children.get(part) if node is not None else None
        return node

    def _add(self, parts: list[bytes], node: Node, name: bytes) -> None:
        if not parts:
            if not node.is_dir:
                raise SourceError(f"{name!r}: the root is no directory")
            node.children, self.root = self.root.children, node
            return
        at = self.root
        for part in parts[:-1]:
            below = at.children.get(part)
            if below is None:
                below = at.children[part] = Node(stat.S_IFDIR | 0o755)
            if not below.is_dir:
                raise SourceError(f"{name!r}: {part!r} is not a directory")
            at = below
        old = at.children.get(parts[-1])
        if old is not None and old.is_dir and node.is_dir:
            node.children = old.children
        at.children[parts[-1]] = node


def _raw(text: str) -> bytes:
    """What stands in the tar."""
    return text.encode("utf-8", "surrogateescape")


def _parts(name: bytes) -> list[bytes]:
    if name.startswith(b"/"):
        raise SourceError(f"{name!r}: an absolute path")
    parts = [p for p in name.split(b"/") if p not in (b"", b".")]
    if b".." in parts:
        raise SourceError(f"{name!r}: leaves the root")
    for part in parts:
        check_name(part, name)
    return parts


def _mtime(info: tarfile.TarInfo, name: bytes) -> tuple[int, int]:
    """tarfile makes a float of a PAX time, which has not bits enough for nanoseconds."""
    text = info.pax_headers.get("mtime")
    if text is None:
        return int(info.mtime), 0
    try:
        exact = Decimal(text)
        # Compared before it becomes an int, which 1e999999 would make a huge one.
        if not abs(exact) < 1 << 63:
            raise SourceError(f"{name!r}: modification time {text!r} does not fit")
        return divmod(int(exact * 10**9), 10**9)
    except (InvalidOperation, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{name!r}: modification time {text!r}") from error
