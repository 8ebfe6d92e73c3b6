"""A tar as a tree.  File data are not read here, only found.

A tar is hostile: names with "..", links to what is not there, a header that does not parse and
data that are not there are refused.  Absolute names begin at the root of the image, and symbolic
links on the way to a name are followed within it, as under chroot.
GNU sparse members go to an unnamed temporary file first, where a source has room for their holes.
"""

from __future__ import annotations

import os
import stat
import tempfile
from typing import IO

from rafs_v6.errors import shown
from rafs_v6.writer.errors import SourceError
from rafs_v6.writer.order import ordered
from rafs_v6.writer.overlay import OCI_PREFIX, WhiteoutSpec
from rafs_v6.writer.sources import tar_members
from rafs_v6.writer.sources.names import NameBudget, Names
from rafs_v6.writer.sources.tar_members import FileCursor, Member, members
from rafs_v6.writer.tree import IMPLIED, ROOT, Node, Tree, check_name, check_node
from rafs_v6.writer.xattrs import LinuxXattrs, Warn

_COPY = 1 << 20
_SPARSE = 1 << 63  # in an extent: it lies in the file of sparse members, not in the tar
_LINKS_MAX = 40  # symbolic links on the way to a name, as in Linux
_PATH_MAX = 4096
# What a name costs in memory is some hundred bytes; in a tar.gz it may cost less than one.
_FREE_NAMES, _STORED_PER_NAME = 1 << 16, 4
# Members that eStargz adds to a layer; they are the format, not the layer.
_ESTARGZ_OWN = (b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark")
_KINDS = {
    tar_members.REGULAR: stat.S_IFREG,
    tar_members.DIRECTORY: stat.S_IFDIR,
    tar_members.SYMLINK: stat.S_IFLNK,
    tar_members.CHAR: stat.S_IFCHR,
    tar_members.BLOCK_DEVICE: stat.S_IFBLK,
    tar_members.FIFO: stat.S_IFIFO,
}


def is_estargz_own(name: bytes) -> bool:
    parts = _parts(name)
    return len(parts) == 1 and parts[0] in _ESTARGZ_OWN


class TarTree:
    """Members become a tree, as they come; a later one replaces an earlier one of its name.

    ``stored_size``: bytes of the tar as it came, compressed or not, which bound its names.
    """

    def __init__(self, stored_size: int, whiteouts: WhiteoutSpec) -> None:
        self.stored_size, self._names = stored_size, 0
        self._whiteouts = whiteouts
        self._xattrs = LinuxXattrs()
        # As the members come; what a later one replaces stays, and is not copied.
        self._heap = Tree()
        self._root = self._heap.add(ROOT, b"", Node(stat.S_IFDIR | 0o755), IMPLIED)
        self._below: dict[int, Names] = {self._root: Names()}
        self._budget = NameBudget()
        self._parents: dict[bytes, int] = {}  # directories that were looked up

    @property
    def tree(self) -> Tree:
        """Where ``add`` puts rows."""
        return self._heap

    def add(self, member: Member, extent: int) -> int:
        """The row of ``member``, whose data are at ``extent``, in a tree of the order they come."""
        name = member.name
        parts = _parts(name)
        if member.type == tar_members.HARD_LINK and self._is_whiteout(parts, member.link):
            # Only its name counts; it may link to a whiteout that is in no layer.
            member.type = tar_members.REGULAR
        if member.type == tar_members.HARD_LINK:
            row = self._find(member.link, name)
            self._count_name()
            self._place(name, parts, row)
            return row
        kind = _KINDS[member.type]
        node = Node(
            kind | member.mode, member.uid, member.gid, member.mtime, member.mtime_nsec,
            xattrs=self._xattrs.of(member.xattrs, name),
        )  # fmt: skip
        if kind == stat.S_IFLNK:
            node.target = member.link
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            if not (0 <= member.major < 1 << 12 and 0 <= member.minor < 1 << 20):
                raise SourceError(f"{shown(name)}: device {member.major}:{member.minor}")
            node.rdev = os.makedev(member.major, member.minor)
        elif kind == stat.S_IFREG:
            node.size = member.size
        check_node(node, name)
        row = self._new(node)
        self._heap.set_extent(row, extent)
        self._place(name, parts, row)
        return row

    def _is_whiteout(self, parts: list[bytes], link: bytes) -> bool:
        """Also when the layer is built without rules, and ``merge`` will apply them."""
        if self._whiteouts is WhiteoutSpec.OVERLAYFS or not parts:
            return False
        name = link.rsplit(b"/", 1)[-1]
        return parts[-1].startswith(OCI_PREFIX) and (
            self._whiteouts is WhiteoutSpec.OCI or name.startswith(OCI_PREFIX)
        )

    def made(self, warn: Warn | None, *, estargz: bool) -> Tree:
        """The tree, in order; nothing can be added then."""
        self._xattrs.report(warn)
        if estargz:
            for name in _ESTARGZ_OWN:
                self._below[self._root].remove(name)
        heap, below = self._heap, self._below
        del self._heap, self._below, self._budget
        return ordered(
            self._root, lambda row: (heap, row), lambda row: below.pop(row).items(),
            heap.chunk_size, spend=True,
        )  # fmt: skip

    def _new(self, node: Node, flags: int = 0) -> int:
        self._count_name()
        return self._heap.add(ROOT, b"", node, flags)

    def _count_name(self) -> None:
        if self._names >= _FREE_NAMES + self.stored_size // _STORED_PER_NAME:
            raise SourceError("the tar has more names than one of its size can have: is it a bomb?")
        self._names += 1

    def _find(self, link: bytes, name: bytes) -> int:
        """The target of a hard link."""
        parts = _parts(link)
        parent = self._directory(parts[:-1], name, make=False) if parts else None
        row = self._below[parent].get(parts[-1]) if parent is not None else None
        if row is None or self._heap.is_dir(row):
            raise SourceError(
                f"{shown(name)}: a hard link to {shown(link)}, which is not a file of the tar"
            )
        return row

    def _directory(self, parts: list[bytes], name: bytes, *, make: bool) -> int | None:
        """The row of the directory ``parts``; what is missing is made, or None."""
        key = b"/".join(parts)
        known = self._parents.get(key)
        if known is not None:
            return known
        trail, todo, links = [self._root], parts[::-1], 0
        while todo:
            part = todo.pop()
            if part == b"..":  # of a symbolic link; names have none
                trail = trail[:-1] or trail
                continue
            below = self._below[trail[-1]]
            row = below.get(part)
            if row is None:
                if not make:
                    return None
                check_name(part, name)
                row = below[part] = self._new(Node(stat.S_IFDIR | 0o755), IMPLIED)
                self._budget.spend(below)
                self._below[row] = below.hidden.pop(part) if part in below.hidden else Names()
            elif stat.S_ISLNK(self._heap.mode[row]):
                target = self._heap.target(row)
                links += 1
                if links > _LINKS_MAX or len(todo) > _PATH_MAX:
                    raise SourceError(f"{shown(name)}: too many symbolic links on the way to it")
                if target.startswith(b"/"):
                    trail = [self._root]
                todo += reversed([p for p in target.split(b"/") if p not in (b"", b".")])
                continue
            elif row not in self._below:
                raise SourceError(f"{shown(name)}: {shown(part)} is not a directory")
            trail.append(row)
        self._parents[key] = trail[-1]
        return trail[-1]

    def _place(self, name: bytes, parts: list[bytes], row: int) -> None:
        is_dir = self._heap.is_dir(row)
        if not parts:
            if not is_dir:
                raise SourceError(f"{shown(name)}: the root is not a directory")
            self._below[row] = self._below.pop(self._root)
            self._root = row
            self._parents.clear()
            return
        parent = self._directory(parts[:-1], name, make=True)
        assert parent is not None
        at = self._below[parent]
        old = at.get(parts[-1])
        names = self._below.pop(old, None) if old is not None else None
        if is_dir:
            if names is None:
                names = at.hidden.pop(parts[-1]) if parts[-1] in at.hidden else Names()
            self._below[row] = names
        elif names is not None:  # the layer goes without its entries, and keeps what it takes away
            at.hidden[parts[-1]] = self._whiteouts_of(names)
        if old is not None:
            self._parents.clear()
        at[parts[-1]] = row
        self._budget.spend(at)

    def _whiteouts_of(self, names: Names) -> Names:
        """And those of directories below, which may lie deep."""
        found: list[tuple[Names, dict[bytes, int]]] = [(names, {})]  # and places of those below
        for its, places in found:
            below = dict(its.hidden)
            for name, row in its.items():
                if row in self._below and not name.startswith(OCI_PREFIX):
                    below[name] = self._below.pop(row)
            for name, others in below.items():
                places[name] = len(found)
                found.append((others, {}))
        kept = [Names() for _ in found]
        for (its, places), own in zip(reversed(found), reversed(kept), strict=True):
            own.update((name, row) for name, row in its.items() if name.startswith(OCI_PREFIX))
            for _ in range(len(own)):  # a few members could have them gone through again and again
                self._count_name()
            for name, place in places.items():
                if kept[place]:
                    own[name] = row = self._new(Node(stat.S_IFDIR | 0o755), IMPLIED)
                    self._below[row] = kept[place]
        return kept[0]


class TarSource:
    """The tree of a tar.  Its data are in ``tar`` and a file of its own: close it last.

    ``stored_size``: bytes of the object that the tar came in; ``refers``: the data must be in
    the tar as they are, so sparse members are refused.
    """

    def __init__(
        self, tar: IO[bytes], stored_size: int, whiteouts: WhiteoutSpec, *, estargz: bool = False,
        refers: bool = False, warn: Warn | None = None,
    ) -> None:  # fmt: skip
        self._tar, self._refers = tar, refers
        self._sparse: IO[bytes] | None = None
        self._size = os.fstat(tar.fileno()).st_size
        found = TarTree(stored_size, whiteouts)
        try:
            for member in members(FileCursor(tar.fileno())):
                extent = self._extent(member) if member.type == tar_members.REGULAR else 0
                found.add(member, extent)
        except BaseException:
            self.close()
            raise
        self.tree = found.made(warn, estargz=estargz)

    top: bytes | None = None

    def data_at(self, extent: int) -> tuple[int, int]:
        file = self._sparse if extent & _SPARSE else self._tar
        assert file is not None
        return file.fileno(), extent & ~_SPARSE

    def close(self) -> None:
        if self._sparse is not None:
            self._sparse.close()

    def _extent(self, member: Member) -> int:
        if member.offset + member.stored > self._size:
            raise SourceError(f"{shown(member.name)}: the tar ends inside its data")
        if member.sparse is None:
            return member.offset
        if self._refers:
            raise SourceError(
                f"{shown(member.name)}: a sparse file, whose data an image cannot refer to; choose"
                " a type that stores them: tar-rafs, targz-rafs"
            )
        if self._sparse is None:
            self._sparse = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        fd = self._sparse.fileno()
        start, source = os.fstat(fd).st_size, member.offset
        os.ftruncate(fd, start + member.size)
        for at, length in zip(member.sparse.offsets, member.sparse.lengths, strict=True):
            for done in range(0, length, _COPY):
                want = min(_COPY, length - done)
                data = os.pread(self._tar.fileno(), want, source + done)
                if len(data) != want:
                    raise SourceError(f"{shown(member.name)}: the tar ends inside its data")
                os.pwrite(fd, data, start + at + done)
            source += length
        return start | _SPARSE


def _parts(name: bytes) -> list[bytes]:
    """Of a path below the image's root; where it begins, with or without "/", is the same."""
    if len(name) > _PATH_MAX:
        raise SourceError(f"a path of {len(name)} bytes: {shown(name[:60])}…")
    parts = [p for p in name.split(b"/") if p not in (b"", b".")]
    if b".." in parts:
        raise SourceError(f"{shown(name)}: leaves the root")
    for part in parts:
        check_name(part, name)
    return parts
