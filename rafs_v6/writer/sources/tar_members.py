"""The members of a tar: ustar, GNU, PAX and star headers become plain values.

Nothing is dropped: zero blocks, also between members and behind the end, are passed over, and
anything else that is not a header is an error.  So a tar behind a tar is read on.
Memory is bounded by constants: an extended header has 1 MiB at most, a sparse map 2^20 pieces.
"""

from __future__ import annotations

import os
import re
import struct
from array import array
from collections.abc import Iterator, Mapping
from typing import Protocol

from rafs_v6.errors import shown
from rafs_v6.values import dataclass, field
from rafs_v6.writer.errors import SourceError

BLOCK = 512
REGULAR, HARD_LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = (
    b"0",
    b"1",
    b"2",
    b"3",
    b"4",
    b"5",
    b"6",
)
_ZERO = bytes(BLOCK)
# name mode uid gid size mtime checksum type link magic version owner group major minor prefix pad
_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12s")
_CHECKSUM = slice(148, 156)
_EXTENDED_MAX = 1 << 20  # as Go's archive/tar; no name, link or set of xattrs needs more
_SPARSE_MAX = 1 << 20
_HEADER_ONLY = HARD_LINK + SYMLINK + CHAR + BLOCK_DEVICE + DIRECTORY + FIFO
_XATTR = b"SCHILY.xattr."
_TIME = re.compile(rb"(-?)(\d{1,19})(?:\.(\d*))?")
_NUMBER = re.compile(rb"\d{1,19}")


class Cursor(Protocol):
    """A tar that is read forwards."""

    pos: int

    def read(self, length: int) -> bytes:
        """The next bytes; fewer only at the end."""

    def skip_to(self, pos: int) -> None:
        """Go on at ``pos``, which is not before the present one."""


class FileCursor:
    """A file from its beginning, read some blocks at a time."""

    def __init__(self, fd: int, ahead: int = 1 << 16) -> None:
        self._fd, self._ahead = fd, ahead
        self._window, self._start = b"", 0
        self.pos = 0

    def read(self, length: int) -> bytes:
        at = self.pos - self._start
        if not 0 <= at <= len(self._window) - length:
            self._start, at = self.pos, 0
            self._window = os.pread(self._fd, max(length, self._ahead), self.pos)
        data = self._window[at : at + length]
        self.pos += len(data)
        return data

    def skip_to(self, pos: int) -> None:
        self.pos = pos


@dataclass(slots=True)
class Sparse:
    """Where the pieces of a sparse file lie in it, ascending; in the tar they follow each other."""

    offsets: array[int] = field(default_factory=lambda: array("Q"))
    lengths: array[int] = field(default_factory=lambda: array("Q"))


@dataclass(slots=True)
class Member:
    """``offset``: of the data in the tar, which are ``stored`` bytes; ``size``: of the file.

    ``type``: one of the constants above; every kind of regular file is ``REGULAR``.
    """

    type: bytes
    name: bytes
    link: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    mtime_nsec: int
    size: int
    stored: int
    offset: int
    major: int
    minor: int
    xattrs: Mapping[bytes, bytes]
    sparse: Sparse | None


def members(tar: Cursor) -> Iterator[Member]:
    """All members, in order; the data of one may be read from ``tar`` before the next is asked for.

    Raises ``SourceError`` for what does not parse.
    """
    return _Parser(tar).members()


@dataclass(slots=True)
class _Pending:
    """What precedes a member and is said of it."""

    pax: dict[bytes, bytes] = field(default_factory=dict)
    name: bytes | None = None
    link: bytes | None = None
    sparse_pairs: list[bytes] = field(default_factory=list)  # of GNU.sparse 0.0, in order


class _Parser:
    def __init__(self, tar: Cursor) -> None:
        self._tar = tar
        self._global: dict[bytes, bytes] = {}
        self._global_xattrs: Mapping[bytes, bytes] = {}

    def members(self) -> Iterator[Member]:
        tar, pending = self._tar, _Pending()
        while True:
            at = tar.pos
            block = tar.read(BLOCK)
            if block == _ZERO:
                continue
            if len(block) < BLOCK:
                if any(block):
                    raise SourceError(f"the tar does not parse: no header at byte {at}")
                break
            fields = _checked(block, at)
            kind = fields[7]
            if kind in b"xXgLK":
                self._extended(kind, _number(fields[4], "size", at), pending, at)
                continue
            if kind == b"V":  # the label of a volume, not a file
                tar.skip_to(_padded(tar.pos + _number(fields[4], "size", at)))
                continue
            member = self._member(block, fields, pending, at)
            pending = _Pending()
            end = _padded(member.offset + member.stored)
            yield member
            tar.skip_to(end)
        if pending != _Pending():
            raise SourceError("the tar does not parse: it ends behind an extended header")

    def _extended(self, kind: bytes, size: int, pending: _Pending, at: int) -> None:
        if size > _EXTENDED_MAX:
            raise SourceError(
                f"the tar has an extended header of {size} bytes at byte {at}; {_EXTENDED_MAX} are"
                " the limit"
            )
        data = self._tar.read(size)
        if len(data) < size:
            raise SourceError(f"the tar ends inside the extended header at byte {at}")
        self._tar.skip_to(_padded(self._tar.pos))
        if kind == b"L":
            pending.name = data.split(b"\0", 1)[0]
        elif kind == b"K":
            pending.link = data.split(b"\0", 1)[0]
        elif kind == b"g":
            self._global |= _records(data, [], at)
            if sum(len(k) + len(v) for k, v in self._global.items()) > _EXTENDED_MAX:
                raise SourceError(f"the tar's global headers have more than {_EXTENDED_MAX} bytes")
            self._global_xattrs = _xattrs(self._global)
        else:
            pending.sparse_pairs.clear()
            pending.pax = _records(data, pending.sparse_pairs, at)

    def _member(
        self, block: bytes, fields: tuple[bytes, ...], pending: _Pending, at: int
    ) -> Member:
        (
            name, mode, uid, gid, size, mtime, _, kind, link, magic,
            _, _, _, major, minor, prefix, _,
        ) = fields  # fmt: skip
        name = name.split(b"\0", 1)[0]
        if magic == b"ustar\0":
            # star has times behind a shorter prefix; GNU ("ustar ") has them in its place.
            prefix = (prefix[:131] if block.endswith(b"tar\0") else prefix).split(b"\0", 1)[0]
            name = prefix + b"/" + name if prefix else name
        link = link.split(b"\0", 1)[0]
        pax = self._global | pending.pax if self._global else pending.pax
        name = pending.name or pax.get(b"path") or name
        link = pending.link or pax.get(b"linkpath") or link
        if kind == b"\0" and name.endswith(b"/"):
            kind = DIRECTORY  # before 1988 there was no type for it
        stored = _pax_number(pax, b"size", name)
        if stored is None:
            stored = _number(size, "size", at)
        seconds, nsec = _pax_time(pax, name) or (_number(mtime, "mtime", at), 0)
        xattrs = self._global_xattrs
        if pending.pax and (own := _xattrs(pending.pax)):
            xattrs = {**xattrs, **own}
        found_uid, found_gid = _pax_number(pax, b"uid", name), _pax_number(pax, b"gid", name)
        member = Member(
            kind, name, link, _number(mode, "mode", at) & 0o7777,
            _number(uid, "uid", at) if found_uid is None else found_uid,
            _number(gid, "gid", at) if found_gid is None else found_gid,
            seconds, nsec, stored, stored, self._tar.pos, _number(major, "device", at),
            _number(minor, "device", at), xattrs, None,
        )  # fmt: skip
        if kind == b"D":  # GNU's incremental archives: a directory, and names of what was in it
            member.type, member.size = DIRECTORY, 0
        elif kind in _HEADER_ONLY:
            member.size = member.stored = 0
        elif kind == b"S":
            member.type = REGULAR
            self._old_gnu_sparse(member, block, at)
        elif kind in (REGULAR, b"\0", b"7"):
            member.type = REGULAR
            self._pax_sparse(member, pax, pending)
        else:
            raise SourceError(f"{shown(name)}: a tar entry of type {shown(kind)!r}")
        return member

    # -- sparse members ------------------------------------------------------------------------

    def _old_gnu_sparse(self, member: Member, block: bytes, at: int) -> None:
        """The map is in the header, 4 pieces, and in blocks behind it, 21 each."""
        sparse = Sparse()
        table, more = block[386:482], block[482]
        while True:
            for i in range(0, len(table), 24):
                if table[i]:  # the unused rest is zeros
                    offset = _number(table[i : i + 12], "sparse map", at)
                    _add_piece(sparse, offset, _number(table[i + 12 : i + 24], "sparse map", at))
            if not more:
                break
            table = self._tar.read(BLOCK)
            if len(table) < BLOCK:
                raise SourceError(f"{shown(member.name)}: the tar ends inside its sparse map")
            table, more = table[:504], table[504]
        member.size = _number(block[483:495], "size", at)
        member.offset = self._tar.pos
        _check_sparse(member, sparse, member.stored)

    def _pax_sparse(self, member: Member, pax: Mapping[bytes, bytes], pending: _Pending) -> None:
        """GNU's sparse formats 0.0, 0.1 and 1.0."""
        name = pax.get(b"GNU.sparse.name")
        if name:
            member.name = name
        size = _pax_number(pax, b"GNU.sparse.realsize", member.name)
        if size is None:
            size = _pax_number(pax, b"GNU.sparse.size", member.name)
        if pax.get(b"GNU.sparse.major") == b"1" and pax.get(b"GNU.sparse.minor") == b"0":
            numbers = self._map_in_data(member)
        elif b"GNU.sparse.map" in pax:
            numbers = iter(pax[b"GNU.sparse.map"].split(b","))
        elif pending.sparse_pairs:
            numbers = iter(pending.sparse_pairs)
        else:
            return
        sparse = Sparse()
        for offset in numbers:
            length = next(numbers, b"")
            for text in (offset, length):
                if not _NUMBER.fullmatch(text):
                    raise SourceError(f"{shown(member.name)}: a sparse map that does not parse")
            _add_piece(sparse, int(offset), int(length))
        start, end = member.offset, member.offset + member.stored
        member.offset = self._tar.pos
        member.stored = end - member.offset
        member.size = member.stored if size is None else size
        if member.stored < 0:
            raise SourceError(f"{shown(member.name)}: its sparse map is longer than its data")
        assert start <= member.offset
        _check_sparse(member, sparse, member.stored)

    def _map_in_data(self, member: Member) -> Iterator[bytes]:
        """Numbers, a line each, how many pairs there are first; padded to a block."""
        text, count, end = b"", None, self._tar.pos + member.stored
        given = 0
        while count is None or given < 2 * count:
            head, newline, rest = text.partition(b"\n")
            if not newline:
                block = self._tar.read(BLOCK) if self._tar.pos < end else b""
                if not block or len(text) > BLOCK:
                    raise SourceError(f"{shown(member.name)}: a sparse map that does not parse")
                text += block
                continue
            text = rest
            if count is None:
                if not _NUMBER.fullmatch(head) or int(head) > _SPARSE_MAX:
                    raise SourceError(f"{shown(member.name)}: a sparse map that does not parse")
                count = int(head)
            else:
                given += 1
                yield head


def _add_piece(sparse: Sparse, offset: int, length: int) -> None:
    if len(sparse.offsets) >= _SPARSE_MAX:
        raise SourceError(f"a sparse map of more than {_SPARSE_MAX} pieces")
    if offset < 0 or length < 0 or offset + length >= 1 << 63:
        raise SourceError("a sparse map with negative or huge numbers")
    sparse.offsets.append(offset)
    sparse.lengths.append(length)


def _check_sparse(member: Member, sparse: Sparse, stored: int) -> None:
    end = total = 0
    for offset, length in zip(sparse.offsets, sparse.lengths, strict=True):
        if offset < end or offset + length > member.size:
            raise SourceError(f"{shown(member.name)}: a sparse piece lies outside the file")
        end = offset + length
        total += length
    if total > stored:
        raise SourceError(f"{shown(member.name)}: its sparse map is longer than its data")
    member.sparse = sparse


# -- fields -----------------------------------------------------------------------------------


def _checked(block: bytes, at: int) -> tuple[bytes, ...]:
    fields: tuple[bytes, ...] = _HEADER.unpack(block)
    want = _octal(fields[6])
    total = sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" ")
    if want != total:
        # Some old programs add signed bytes.
        high = sum(b >> 7 for b in block) - sum(b >> 7 for b in block[_CHECKSUM])
        if want != total - 256 * high:
            raise SourceError(f"the tar does not parse: no header at byte {at}")
    return fields


def _octal(text: bytes) -> int | None:
    text = text.split(b"\0", 1)[0].strip(b" ")
    if not text:
        return 0
    return None if text.strip(b"01234567") else int(text, 8)


def _number(text: bytes, what: str, at: int) -> int:
    """Octal, or with the first bit set 256 to the base, two's complement."""
    if text[0] & 0x80:
        bits = 8 * len(text) - 1
        value = int.from_bytes(text, "big") & (1 << bits) - 1
        value -= (value >> bits - 1) << bits
    else:
        octal = _octal(text)
        if octal is None:
            raise SourceError(f"the tar does not parse: {what} of the header at byte {at}")
        value = octal
    if what == "size" and not 0 <= value < 1 << 63:
        raise SourceError(f"the tar does not parse: size {value} in the header at byte {at}")
    return value


def _records(data: bytes, sparse_pairs: list[bytes], at: int) -> dict[bytes, bytes]:
    """Lines "LENGTH KEY=VALUE".  Pairs of sparse format 0.0, whose keys repeat, go to the list."""
    found: dict[bytes, bytes] = {}
    pos = 0
    while pos < len(data):
        blank = data.find(b" ", pos, pos + 20)
        length = int(text) if blank > 0 and _NUMBER.fullmatch(text := data[pos:blank]) else 0
        end = pos + length
        key, equals, value = data[blank + 1 : end - 1].partition(b"=")
        if length < 5 or end > len(data) or data[end - 1 : end] != b"\n" or not (equals and key):
            if not any(data[pos:]):
                break  # some writers count the padding
            raise SourceError(f"the tar does not parse: the extended header at byte {at}")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            sparse_pairs.append(value)
        else:
            found[key] = value
        pos = end
    return found


def _xattrs(pax: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    return {k[len(_XATTR) :]: v for k, v in pax.items() if k.startswith(_XATTR)}


def _pax_number(pax: Mapping[bytes, bytes], key: bytes, name: bytes) -> int | None:
    text = pax.get(key)
    if not text:
        return None
    if not _NUMBER.fullmatch(text):
        raise SourceError(f"{shown(name)}: {shown(key)} {shown(text[:40])!r} is not a number")
    return int(text)


def _pax_time(pax: Mapping[bytes, bytes], name: bytes) -> tuple[int, int] | None:
    text = pax.get(b"mtime")
    if not text:
        return None
    match = _TIME.fullmatch(text)
    if match is None:
        raise SourceError(f"{shown(name)}: modification time {shown(text[:40])!r}")
    sign, seconds, fraction = match.groups()
    total = int(seconds) * 10**9 + int((fraction or b"")[:9].ljust(9, b"0"))
    return divmod(-total if sign else total, 10**9)


def _padded(pos: int) -> int:
    return -(-pos // BLOCK) * BLOCK
