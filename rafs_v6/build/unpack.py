"""An image becomes a tar again, chunk by chunk, every chunk verified that has a digest."""

from __future__ import annotations

import os
import stat
import tarfile
from typing import IO

from rafs_v6.bootstrap import Inode
from rafs_v6.image import Image

_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


_BUFFER = 1 << 20


def unpack(image: Image, out: IO[bytes]) -> list[bytes]:
    """Write ``image`` to ``out`` as a PAX tar; the paths that no tar can hold (sockets)."""
    first: dict[int, str] = {}
    left_out: list[bytes] = []
    with tarfile.open(
        fileobj=out, mode="w|", bufsize=_BUFFER, format=tarfile.PAX_FORMAT, encoding="utf-8",
        errors="surrogateescape",
    ) as tar:  # fmt: skip
        for path, inode in image.walk():
            kind = _TYPES.get(stat.S_IFMT(inode.mode))
            if kind is None:
                left_out.append(path)
                continue
            info = _info(image, path, inode, kind)
            earlier = first.setdefault(inode.nid, info.name)
            if not inode.is_dir and earlier != info.name:
                info.type, info.linkname, info.size = tarfile.LNKTYPE, earlier, 0
                tar.addfile(info)
            elif inode.is_reg:
                with image.open_file(path) as data:
                    tar.addfile(info, data)
            else:
                tar.addfile(info)
            tar.members.clear()  # type: ignore[attr-defined] # or all headers stay in memory
    return left_out


def _info(image: Image, path: bytes, inode: Inode, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path.strip(b"/").decode("utf-8", "surrogateescape") or ".")
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
    if inode.is_reg:
        info.size = inode.size
    elif inode.is_symlink:
        info.linkname = os.fsdecode(image.bootstrap.read_link(inode))
    else:
        info.devmajor, info.devminor = os.major(inode.rdev), os.minor(inode.rdev)
    return info
