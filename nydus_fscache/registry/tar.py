"""The members of a tar as a stream, for layers of strangers.  No I/O of its own.

A name or an extended header that claims more than ``HEADER_LIMIT`` bytes is refused before
memory is taken (Python's tarfile takes whatever a header claims).  Content is handed out as
a size and a position of the stream: whoever wants it reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

from nydus_fscache.errors import BadImage
from rafs_v6.values import dataclass

HEADER_LIMIT = 1024 * 1024  # bytes of one name or extended header; real ones have some KiB
_MEMBER_LIMIT = 100_000  # a bootstrap layer has a handful
_BLOCK = 512
_PIECE = 64 * 1024
_REGULAR = frozenset(b"0\x007")
_WITHOUT_DATA = frozenset(b"123456")  # links, devices, directories, fifos: whatever size says
_RECORD = re.compile(rb"(\d{1,20}) ([^=]+)=", re.DOTALL)


class Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Member:
    """``size`` in bytes, of the data that follow in the stream."""

    name: str
    size: int
    regular: bool


class Counted:
    """Counts the bytes that are read, by whomever."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.position = 0

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self.position += len(data)
        return data

    def exactly(self, size: int) -> bytes:
        """All of them, or none at the end of the stream."""
        data = self.read(size)
        if data and len(data) != size:
            raise BadImage("the bootstrap layer ends in the middle", hint="push it again")
        return data

    def skip(self, size: int) -> None:
        while size > 0:
            data = self.read(min(size, _PIECE))
            if not data:
                raise BadImage("the bootstrap layer ends in the middle", hint="push it again")
            size -= len(data)


def members(source: Counted) -> Iterator[Member]:
    """Each member, the stream at its first byte; data that the caller leaves are skipped.

    The caller reads at most ``size`` bytes.  ``BadImage`` for what is not a tar, damaged, or
    a bomb.
    """
    name, size = "", -1  # of an extended header, for the member behind it
    for _ in range(_MEMBER_LIMIT):
        block = source.exactly(_BLOCK)
        if not block or not any(block):
            return
        _verify(block)
        kind, length = block[156], _number(block[124:136])
        if kind in b"xLgKV":
            data = _extended(source, length)
            if kind == b"L"[0]:
                name = _text(data.partition(b"\0")[0])
            elif kind == b"x"[0]:
                found = _records(data)
                name = _text(found[b"path"]) if b"path" in found else name
                size = _decimal(found[b"size"]) if b"size" in found else size
            continue
        if kind == b"S"[0]:  # the map of a sparse file goes on in blocks of its own
            more = block[482]
            while more:
                more = (source.exactly(_BLOCK) or bytes(_BLOCK))[504]
        length = size if size >= 0 else length
        length = 0 if kind in _WITHOUT_DATA else length
        begin = source.position
        yield Member(name or _ustar_name(block), length, kind in _REGULAR)
        source.skip(begin + length + -length % _BLOCK - source.position)
        name, size = "", -1
    raise BadImage(f"the bootstrap layer has more than {_MEMBER_LIMIT} members", hint="hostile?")


def _extended(source: Counted, length: int) -> bytes:
    if length > HEADER_LIMIT:
        raise BadImage(
            f"the bootstrap layer has a header of {length} bytes, {HEADER_LIMIT} are allowed",
            hint="a hostile image?",
        )
    data = source.exactly(length + -length % _BLOCK) if length else b""
    if len(data) < length:
        raise BadImage("the bootstrap layer ends in the middle", hint="push it again")
    return data[:length]


def _verify(block: bytes) -> None:
    """Old tars sum signed bytes."""
    rest = block[:148] + b" " * 8 + block[156:]
    signed = sum(rest) - 256 * sum(1 for byte in rest if byte > 127)
    if _number(block[148:156]) not in (sum(rest), signed):
        raise BadImage("the bootstrap layer is damaged: not a tar header", hint="push it again")


def _number(field: bytes) -> int:
    """Octal, or base 256 with the first bit set."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
    return _decimal(field.strip(b"\0 ") or b"0", 8)


def _decimal(text: bytes, base: int = 10) -> int:
    digits = b"01234567" if base == 8 else b"0123456789"
    if not text or len(text) > 20 or text.strip(digits):
        raise BadImage("the bootstrap layer is damaged: a number of its tar", hint="push it again")
    return int(text, base)


def _ustar_name(block: bytes) -> str:
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    return _text(name)


def _text(name: bytes) -> str:
    return name.decode(errors="surrogateescape")


def _records(data: bytes) -> dict[bytes, bytes]:
    """``LENGTH KEY=VALUE\\n``, LENGTH counts the whole record."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data) and data[at]:
        match = _RECORD.match(data, at, at + 4096)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise BadImage("the bootstrap layer is damaged: a pax header", hint="push it again")
        found[match[2]] = data[match.end() : end - 1]
        at = end
    return found
