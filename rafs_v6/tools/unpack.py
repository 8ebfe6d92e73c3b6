"""An image becomes a tar again, chunk by chunk, every chunk verified that has a digest."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Iterator

from rafs_v6.reader.blobs import Blobs
from rafs_v6.reader.image import Image
from rafs_v6.reader.inode import Inode
from rafs_v6.reader.stream import stream
from rafs_v6.values import dataclass

_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


_BUFFER = 1 << 20


def unpack(
    image: Image, blobs: Blobs, write: Callable[[bytes | memoryview], object], *,
    threads: int = 0, progress: Callable[[int, int], None] | None = None,
) -> list[bytes]:  # fmt: skip
    """Write ``image`` as a PAX tar; the paths that no tar can hold (sockets).

    Every chunk that has a digest is verified before a byte of it is written.
    """
    boot = image.bootstrap
    members = list(_members(image))
    files = [m.inode for m in members if m.has_data]
    total = sum(inode.size for inode in files)
    refs = (ref for inode in files for ref in boot.chunks(inode))
    data = stream(image, blobs.read_at, refs, threads)
    left_out, written, done = [], 0, 0
    for member in members:
        info = _info(image, member)
        if info is None:
            left_out.append(member.path)
            continue
        header = info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        write(header)
        written += len(header)
        left = member.inode.size if member.has_data else 0
        padding = -left % tarfile.BLOCKSIZE
        written += left + padding
        while left:
            piece = next(data)
            write(piece)
            left -= len(piece)
            done += len(piece)
            if progress is not None:
                progress(done, total)
        if padding:
            write(bytes(padding))
    data.close()
    write(bytes(2 * tarfile.BLOCKSIZE + -(written + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE))
    return left_out


@dataclass(frozen=True, slots=True)
class _Member:
    """``first``: the earlier name of the same file, for a hard link."""

    path: bytes
    inode: Inode
    first: str | None

    @property
    def has_data(self) -> bool:
        return self.inode.is_reg and self.first is None


def _members(image: Image) -> Iterator[_Member]:
    names: dict[int, str] = {}
    for path, inode in image.walk():
        name = _name(path)
        first = None if inode.is_dir else names.setdefault(inode.nid, name)
        yield _Member(path, inode, None if first == name else first)


def _name(path: bytes) -> str:
    return path.strip(b"/").decode("utf-8", "surrogateescape") or "."


def _info(image: Image, member: _Member) -> tarfile.TarInfo | None:
    inode = member.inode
    kind = _TYPES.get(stat.S_IFMT(inode.mode))
    if kind is None:
        return None
    info = tarfile.TarInfo(_name(member.path))
    info.type = kind
    info.mode, info.uid, info.gid = stat.S_IMODE(inode.mode), inode.uid, inode.gid
    info.mtime = inode.mtime
    headers: dict[str, str] = {}
    if inode.mtime_nsec or inode.mtime < 0:
        # In PAX text, not as tarfile's float, which has not bits enough for nanoseconds.
        total = inode.mtime * 10**9 + inode.mtime_nsec
        sign, (seconds, nsec) = "-" if total < 0 else "", divmod(abs(total), 10**9)
        headers["mtime"] = f"{sign}{seconds}.{nsec:09}"
        info.mtime = max(0, inode.mtime)
    for key, value in image.bootstrap.xattrs(inode).items():
        name = key.decode("utf-8", "surrogateescape")
        headers[f"SCHILY.xattr.{name}"] = value.decode("utf-8", "surrogateescape")
    info.pax_headers = headers
    if member.first is not None:
        info.type, info.linkname = tarfile.LNKTYPE, member.first
    elif inode.is_reg:
        info.size = inode.size
    elif inode.is_symlink:
        info.linkname = os.fsdecode(image.bootstrap.read_link(inode))
    else:
        info.devmajor, info.devminor = os.major(inode.rdev), os.minor(inode.rdev)
    return info
