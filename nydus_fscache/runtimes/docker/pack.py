"""What a layer changed, out of its directory: as a tar, as a list, as a number of bytes."""

from __future__ import annotations

import contextlib
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from nydus_fscache.runtimes.docker.unpack import OPAQUE, OPAQUE_XATTR, WHITEOUT

MODIFIED, ADDED, DELETED = 0, 1, 2  # docker's pkg/archive, ChangeType
_OURS = "trusted.overlay."


def entries(directory: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Paths relative to ``directory``, parents first; whiteouts among them."""
    for parent, folders, files in os.walk(directory):
        folders.sort()
        for name in sorted([*folders, *files]):
            path = os.path.join(parent, name)
            yield os.path.relpath(path, directory), os.lstat(path)


def is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(path: Path) -> bool:
    try:
        return os.getxattr(path, OPAQUE_XATTR, follow_symlinks=False) == b"y"
    except OSError:
        return False


def pack(directory: Path, to: IO[bytes]) -> None:
    """A tar with ``.wh.`` names."""
    with tarfile.open(fileobj=to, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name, status in entries(directory):
            path = directory / name
            if is_whiteout(status):
                head, tail = os.path.split(name)
                tar.addfile(tarfile.TarInfo(os.path.join(head, f"{WHITEOUT}{tail}")))
                continue
            if stat.S_ISSOCK(status.st_mode):
                continue  # no tar can hold one
            member = tar.gettarinfo(str(path), name)
            member.pax_headers = _xattrs(path)
            if member.isreg():
                with path.open("rb") as file:
                    tar.addfile(member, file)
            else:
                tar.addfile(member)
            if member.isdir() and _is_opaque(path):
                tar.addfile(tarfile.TarInfo(os.path.join(name, OPAQUE)))


def _xattrs(path: Path) -> dict[str, str]:
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listxattr(path, follow_symlinks=False):
            if not name.startswith(_OURS):
                value = os.getxattr(path, name, follow_symlinks=False)
                found[f"SCHILY.xattr.{name}"] = value.decode("utf-8", "surrogateescape")
    return found


def changes(directory: Path, lowers: Sequence[Path]) -> list[dict[str, object]]:
    """Against ``lowers``, the topmost first."""
    return [
        {"Path": f"/{name}", "Kind": DELETED if is_whiteout(s) else _kind(name, lowers)}
        for name, s in entries(directory)
    ]


def _kind(name: str, lowers: Sequence[Path]) -> int:
    for lower in lowers:
        with contextlib.suppress(OSError):
            return ADDED if is_whiteout(os.lstat(lower / name)) else MODIFIED
    return ADDED


def size(directory: Path) -> int:
    """Bytes of the regular files, each inode once."""
    found = {s.st_ino: s.st_size for _, s in entries(directory) if stat.S_ISREG(s.st_mode)}
    return sum(found.values())
