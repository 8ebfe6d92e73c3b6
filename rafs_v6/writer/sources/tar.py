"""A tar as a tree.  File data are not read here, only found.

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
from typing import IO, cast

from rafs_v6.writer.errors import SourceError
from rafs_v6.writer.tree import ROOT, Node, Tree, check_name, check_node, ordered

_BLOCK = 512
_COPY = 1 << 20
_SPARSE = 1 << 63  # in an extent: it lies in the file of sparse members, not in the tar
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


class TarSource:
    """The tree of a tar.  Its data are in ``tar`` and a file of its own: close it last.

    ``refers``: the data must be in the tar as they are, so sparse members are refused.
    """

    def __init__(self, tar: IO[bytes], *, estargz: bool = False, refers: bool = False) -> None:
        self._tar, self._refers = tar, refers
        self._sparse: IO[bytes] | None = None
        self._size = os.fstat(tar.fileno()).st_size
        # As the entries come; what a later one replaces stays, and is not copied.
        self._heap = Tree()
        self._root = self._heap.add(ROOT, b"", Node(stat.S_IFDIR | 0o755))
        self._below: dict[int, dict[bytes, int]] = {self._root: {}}
        try:
            self._read()
        except (tarfile.TarError, EOFError, UnicodeError) as error:
            raise SourceError(f"the tar does not parse: {error}") from error
        if estargz:
            for name in _ESTARGZ_OWN:
                self._below[self._root].pop(name, None)
        heap, below = self._heap, self._below
        del self._heap, self._below
        self.tree = ordered(
            self._root, lambda row: (heap, row), lambda row: list(below.pop(row).items()), 0
        )  # fmt: skip

    def open(self, path: bytes, extent: int) -> tuple[int, int]:
        file = self._sparse if extent & _SPARSE else self._tar
        assert file is not None
        return file.fileno(), extent & ~_SPARSE

    def close_file(self, fd: int) -> None:
        pass

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
            row = self._find(_parts(_raw(info.linkname)))
            if row is None or self._heap.is_dir(row):
                raise SourceError(f"{name!r}: a hard link to {info.linkname!r}, which is no file")
            self._place(parts, row, name)
            return
        kind = _TYPES.get(info.type)
        if kind is None:
            raise SourceError(f"{name!r}: a tar entry of type {info.type!r}")
        seconds, nsec = _mtime(info, name)
        node = Node(kind | stat.S_IMODE(info.mode), info.uid, info.gid, seconds, nsec)
        node.xattrs = {
            _raw(key[len(_XATTR_PAX) :]): _raw(value)
            for key, value in info.pax_headers.items()
            if key.startswith(_XATTR_PAX)
        }
        if kind == stat.S_IFLNK:
            node.target = _raw(info.linkname)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            if not (0 <= info.devmajor < 1 << 12 and 0 <= info.devminor < 1 << 20):
                raise SourceError(f"{name!r}: device {info.devmajor}:{info.devminor}")
            node.rdev = os.makedev(info.devmajor, info.devminor)
        extent = 0
        if kind == stat.S_IFREG:
            node.size = info.size
            extent = self._extent(info, name)
        check_node(node, name)
        row = self._heap.add(ROOT, b"", node)
        self._heap.extent[row] = extent
        self._place(parts, row, name)

    def _extent(self, info: tarfile.TarInfo, name: bytes) -> int:
        # The stubs call it an int; it is what tarfile read from the header or the PAX record.
        pieces = cast("list[tuple[int, int]] | None", info.sparse)
        if pieces is None:
            if info.size < 0 or info.offset_data + info.size > self._size:
                raise SourceError(f"{name!r}: the tar ends inside its data")
            return info.offset_data
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
        return start | _SPARSE

    def _find(self, parts: list[bytes]) -> int | None:
        row: int | None = self._root
        for part in parts:
            row = self._below.get(row, {}).get(part) if row is not None else None
        return row

    def _place(self, parts: list[bytes], row: int, name: bytes) -> None:
        is_dir = self._heap.is_dir(row)
        if not parts:
            if not is_dir:
                raise SourceError(f"{name!r}: the root is no directory")
            self._below[row] = self._below.pop(self._root)
            self._root = row
            return
        at = self._below[self._root]
        for part in parts[:-1]:
            below = at.get(part)
            if below is None:
                below = at[part] = self._heap.add(ROOT, b"", Node(stat.S_IFDIR | 0o755))
                self._below[below] = {}
            if below not in self._below:
                raise SourceError(f"{name!r}: {part!r} is not a directory")
            at = self._below[below]
        old = at.get(parts[-1])
        if is_dir:
            self._below[row] = self._below.pop(old, {}) if old is not None else {}
        at[parts[-1]] = row


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
