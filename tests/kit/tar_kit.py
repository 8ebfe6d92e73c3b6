"""Tars made entry by entry, also those that no tar program would write."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping

DIR, LINK, HARD, FIFO, CHAR = (
    tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE,
)  # fmt: skip
MTIME = 1_700_000_000
END = bytes(1024)


def member(
    name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", *, link: str = "",
    mode: int | None = None, owner: int = 0, mtime: int = MTIME, pax: Mapping[str, str] = {},
    xattrs: Mapping[str, str] = {}, form: int = tarfile.PAX_FORMAT,
) -> bytes:  # fmt: skip
    """A member with its extended headers and its padded data."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(data), link
    info.mode = mode if mode is not None else 0o755 if kind == DIR else 0o644
    info.uid = info.gid = owner
    info.mtime = mtime
    if kind == CHAR:
        info.devmajor, info.devminor = 1, 3
    info.pax_headers = {**pax, **{f"SCHILY.xattr.{k}": v for k, v in xattrs.items()}}
    header = info.tobuf(form, "utf-8", "surrogateescape")
    return header + data + bytes(-len(data) % 512)


def tar(*members: bytes) -> bytes:
    return b"".join(members) + END


def header_with(header: bytes, fields: Mapping[int, bytes]) -> bytes:
    """The 512 bytes with others at some offsets, and the checksum that is right then."""
    out = bytearray(header)
    for at, value in fields.items():
        out[at : at + len(value)] = value
    out[148:156] = b" " * 8
    out[148:156] = b"%06o\0 " % sum(out[:512])
    return bytes(out)


def with_gnu_times(entry: bytes, at: bytes = b"15302423010\0") -> bytes:
    """A GNU member with atime and ctime, where a ustar header has its prefix."""
    return header_with(entry[:512], {345: at, 357: at}) + entry[512:]
