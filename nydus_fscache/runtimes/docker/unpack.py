"""A layer's tar into a directory, as overlayfs wants it; in a process that sees nothing else.

Names of a stranger cannot lead out: the process has made the directory its root.  ``.wh.`` names
become whiteouts and opaque directories (OCI image-spec, layer.md; kernel, overlayfs.rst).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
from pathlib import Path
from typing import IO, BinaryIO, Protocol

from nydus_fscache.errors import BadImage

WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
OPAQUE_XATTR = "trusted.overlay.opaque"
_XATTR = "SCHILY.xattr."
_PIECE = 1 << 20


class Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


def unpack(source: Source, target: Path) -> int:
    """Bytes of the files.  ``BadImage`` says what is wrong with the tar."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        _child(source, target, theirs)
    os.close(theirs)
    with os.fdopen(ours) as answer:
        said = answer.read()
    _, status = os.waitpid(child, 0)
    if status or not said.isdigit():
        raise BadImage(f"the layer cannot be unpacked: {said or f'status {status}'}")
    return int(said)


def _child(source: Source, target: Path, to: int) -> None:
    """Never returns; takes no lock that another thread of the parent may have held."""
    code = 1
    try:
        os.chroot(target)
        os.chdir("/")
        size = _extract(source)
        os.write(to, str(size).encode())
        code = 0
    except BaseException as e:
        with contextlib.suppress(OSError):
            os.write(to, f"{type(e).__name__}: {e}".encode())
    finally:
        os._exit(code)


def _extract(source: Source) -> int:
    size = 0
    directories: list[tuple[str, tarfile.TarInfo]] = []
    with tarfile.open(fileobj=source, mode="r|") as tar:  # type: ignore[call-overload]
        for member in tar:
            name = os.path.normpath(f"/{member.name}")
            base = os.path.basename(name)
            parent = os.path.dirname(name)
            os.makedirs(parent, exist_ok=True)
            if base == OPAQUE:
                os.setxattr(parent, OPAQUE_XATTR, b"y")
            elif base.startswith(WHITEOUT):
                _clear(os.path.join(parent, base.removeprefix(WHITEOUT)))
                os.mknod(os.path.join(parent, base.removeprefix(WHITEOUT)), stat.S_IFCHR, 0)
            else:
                size += _member(tar, member, name)
                if member.isdir():
                    directories.append((name, member))
    while source.read(_PIECE):  # tars end before their streams do
        pass
    for name, member in reversed(directories):
        os.utime(name, (member.mtime, member.mtime))
    return size


def _clear(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(name).st_mode):
            shutil.rmtree(name)
        else:
            os.unlink(name)


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> int:
    if member.isdir():
        if not os.path.isdir(name) or os.path.islink(name):
            _clear(name)
            os.mkdir(name)
    else:
        _clear(name)
        if member.islnk():
            os.link(os.path.normpath(f"/{member.linkname}"), name, follow_symlinks=False)
            return 0  # owner and mode are the other name's
        if member.issym():
            os.symlink(member.linkname, name)
        elif member.isreg():
            _copy(tar.extractfile(member), name)
        else:
            kinds = {
                tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK,
                tarfile.FIFOTYPE: stat.S_IFIFO,
            }  # fmt: skip
            device = os.makedev(member.devmajor, member.devminor)
            os.mknod(name, kinds[member.type], device)
    os.chown(name, member.uid, member.gid, follow_symlinks=False)
    if not member.issym():
        os.chmod(name, member.mode & 0o7777)
    for key, value in member.pax_headers.items():
        if key.startswith(_XATTR):
            data = value.encode("utf-8", "surrogateescape")
            with contextlib.suppress(OSError):  # what this file system has not
                os.setxattr(name, key.removeprefix(_XATTR), data, follow_symlinks=False)
    os.utime(name, (member.mtime, member.mtime), follow_symlinks=False)
    return member.size if member.isreg() else 0


def _copy(source: IO[bytes] | None, name: str) -> None:
    target: BinaryIO
    with open(name, "xb") as target:
        while source is not None and (data := source.read(_PIECE)):
            target.write(data)
