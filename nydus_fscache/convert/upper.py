"""The upper directory of an overlay as a layer's tar: whiteouts as OCI has them, names in order.

Nothing is unpacked or copied: the tar is made while it is read.  The same directory gives the same
bytes.  Whoever writes to it meanwhile makes the tar wrong or this fail: pause them.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from nydus_fscache.convert.errors import ConvertError
from nydus_fscache.registry.store import PIECE

_OVERLAY = ("trusted.overlay.", "user.overlay.")
_OPAQUE = ".wh..wh..opq"
_WHITEOUT = ".wh."
_BLOCK = 512
_KINDS = {
    stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE, stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE, stat.S_IFIFO: tarfile.FIFOTYPE, stat.S_IFREG: tarfile.REGTYPE,
}  # fmt: skip


def layer_of(upper: Path, excluded: Sequence[str] = ()) -> Iterator[bytes]:
    """``excluded``: absolute paths of the container that are left out with all below them."""
    left_out = {path.strip("/") for path in excluded}
    links: dict[tuple[int, int], str] = {}
    yield from _directory(str(upper), "", left_out, links)
    yield bytes(2 * _BLOCK)


def _directory(
    top: str, below: str, left_out: set[str], links: dict[tuple[int, int], str]
) -> Iterator[bytes]:
    here = os.path.join(top, below) if below else top
    for name in sorted(os.listdir(here)):
        path = os.path.join(below, name)
        if path in left_out:
            continue
        file = os.path.join(top, path)
        status = os.lstat(file)
        kind = stat.S_IFMT(status.st_mode)
        if name.startswith(_WHITEOUT):
            raise ConvertError(
                f"/{path}: a layer cannot hold this name, which means that a file was removed",
                hint=f"leave it out: --with-path '!/{path}'",
            )
        if kind == stat.S_IFSOCK:  # of a process that is not in the image
            continue
        if kind == stat.S_IFCHR and status.st_rdev == 0:
            yield _head(tarfile.TarInfo(os.path.join(below, _WHITEOUT + name)))
            continue
        yield from _entry(file, path, status, links)
        if kind == stat.S_IFDIR:
            if _xattr(file, "overlay.opaque") == b"y":
                yield _head(tarfile.TarInfo(os.path.join(path, _OPAQUE)))
            yield from _directory(top, path, left_out, links)


def _entry(
    file: str, path: str, status: os.stat_result, links: dict[tuple[int, int], str]
) -> Iterator[bytes]:
    for word, meaning in (("redirect", "a renamed directory"), ("metacopy", "data elsewhere")):
        if _xattr(file, f"overlay.{word}") is not None:
            raise ConvertError(
                f"/{path}: {meaning} (overlay.{word}), which a layer cannot say",
                hint=f"mount the overlay with {'redirect_dir' if word == 'redirect' else word}=off",
            )
    info = tarfile.TarInfo(path)
    info.type = _KINDS[stat.S_IFMT(status.st_mode)]
    info.mode, info.uid, info.gid = stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid
    info.mtime = status.st_mtime_ns // 10**9
    info.pax_headers = {
        f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")
        for name, value in sorted(_xattrs(file).items())
    }
    if info.type == tarfile.SYMTYPE:
        info.linkname = os.readlink(file)
    elif info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor, info.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    elif info.type == tarfile.REGTYPE:
        first = links.setdefault((status.st_dev, status.st_ino), path)
        if first != path:
            info.type, info.linkname = tarfile.LNKTYPE, first
        else:
            info.size = status.st_size
    yield _head(info)
    if info.type == tarfile.REGTYPE:
        yield from _data(file, path, info.size)


def _data(file: str, path: str, size: int) -> Iterator[bytes]:
    left = size
    with open(file, "rb", buffering=0) as source:
        while left:
            data = source.read(min(PIECE, left))
            if not data:
                raise ConvertError(f"/{path} became shorter while it was read")
            left -= len(data)
            yield data
    yield bytes(-size % _BLOCK)


def _head(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _xattrs(file: str) -> dict[str, bytes]:
    return {
        name: os.getxattr(file, name, follow_symlinks=False)
        for name in os.listxattr(file, follow_symlinks=False)
        if not name.startswith(_OVERLAY)
    }


def _xattr(file: str, name: str) -> bytes | None:
    """Of overlayfs, by whoever mounted it: root, or a user in a name space of its own."""
    for space in ("trusted", "user"):
        try:
            return os.getxattr(file, f"{space}.{name}", follow_symlinks=False)
        except OSError:
            continue
    return None
