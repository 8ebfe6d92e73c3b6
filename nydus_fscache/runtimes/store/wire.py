"""FUSE messages for a tree of names, as bytes (linux/fuse.h, protocol 7.31).  No I/O."""

from __future__ import annotations

import struct
from enum import IntEnum

from rafs_v6.values import dataclass

MAJOR, MINOR = 7, 31
SLOT = 16 * 1024  # more than FUSE_MIN_READ_BUFFER, and than a request with MAX_WRITE
MAX_WRITE = 4096  # the least that the kernel takes; nothing is written here
ROOT = 1

_IN = struct.Struct("<IIQQIIII")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY = struct.Struct("<QQQQII")
_INIT = struct.Struct("<IIIIHHIIHHI28x")
_READ = struct.Struct("<QQI")
_DIRENT = struct.Struct("<QQII")
_STATFS = struct.Struct("<QQQQQIIII24x")
IN_SIZE = _IN.size
DIRECT_IO = 1
FOREVER_S = 1 << 31
_BLOCK = 512


class Op(IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    MKDIR = 9
    RMDIR = 11
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    CREATE = 35
    DESTROY = 38
    BATCH_FORGET = 42


SILENT = frozenset((Op.FORGET, Op.BATCH_FORGET))  # requests that get no answer


@dataclass(frozen=True, slots=True)
class Request:
    """``pid``: 0 when the caller is in another pid namespace."""

    op: int
    unique: int
    node: int
    uid: int
    pid: int
    body: bytes

    def name(self, skip: int = 0) -> str:
        """Behind ``skip`` bytes of numbers."""
        return self.body[skip:].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")

    def forgotten(self) -> list[tuple[int, int]]:
        """Nodes and how many of the answers that named them are forgotten."""
        if self.op == Op.FORGET:
            return [(self.node, struct.unpack_from("<Q", self.body)[0])]
        count = struct.unpack_from("<I", self.body)[0]
        pairs = struct.iter_unpack("<QQ", self.body[8 : 8 + 16 * count])
        return [(node, lookups) for node, lookups in pairs]

    def range(self) -> tuple[int, int]:
        """Offset and length, of READ and READDIR."""
        _, off, length = _READ.unpack_from(self.body)
        return off, length


@dataclass(frozen=True, slots=True)
class Attr:
    """``mode`` with the type; ``size`` in bytes."""

    node: int
    mode: int
    size: int = 0

    def encoded(self) -> bytes:
        blocks = -(-self.size // _BLOCK)
        return _ATTR.pack(
            self.node, self.size, blocks, 0, 0, 0, 0, 0, 0, self.mode, 1, 0, 0, 0, 4096, 0
        )


def is_open(slot: memoryview) -> bool:
    """Does it hold a request that is not answered?"""
    return any(slot[:4])


def parse(slot: memoryview) -> Request:
    """``ValueError`` for what is not a whole request."""
    length, op, unique, node, uid, _, pid, _ = _IN.unpack_from(slot)
    if not IN_SIZE <= length <= len(slot):
        raise ValueError(f"a request of {length} bytes")
    return Request(op, unique, node, uid, pid, bytes(slot[IN_SIZE:length]))


def answer(unique: int, body: bytes) -> bytes:
    return _OUT.pack(_OUT.size + len(body), 0, unique) + body


def failure(unique: int, code: int) -> bytes:
    return _OUT.pack(_OUT.size, -code, unique)


def init(body: bytes) -> bytes:
    """``ValueError`` for a kernel that does not speak protocol 7.31 (before 5.2)."""
    major, minor, ahead, _ = struct.unpack_from("<IIII", body)
    if (major, minor) < (MAJOR, MINOR):
        raise ValueError(f"the kernel speaks FUSE {major}.{minor}, {MAJOR}.{MINOR} is needed")
    return _INIT.pack(MAJOR, MINOR, ahead, 0, 16, 12, MAX_WRITE, 1, 0, 0, 0)


def entry(attr: Attr) -> bytes:
    """Nothing is cached by the kernel: whoever asks may get another answer than the one before."""
    return _ENTRY.pack(attr.node, 0, 0, 0, 0, 0) + attr.encoded()


def attributes(attr: Attr, valid_s: int = 0) -> bytes:
    """``valid_s``: for so long the kernel answers by itself."""
    return struct.pack("<QII", valid_s, 0, 0) + attr.encoded()


def opened(flags: int) -> bytes:
    return struct.pack("<QII", 0, flags, 0)


def statfs() -> bytes:
    return _STATFS.pack(0, 0, 0, 0, 0, 4096, 255, 4096, 0)


def directory(entries: list[tuple[str, Attr]], off: int, length: int) -> bytes:
    """As many entries from number ``off`` on as fit into ``length`` bytes."""
    out = bytearray()
    for number, (name, attr) in enumerate(entries[off:], off + 1):
        data = name.encode("utf-8", "surrogateescape")
        one = _DIRENT.pack(attr.node, number, len(data), attr.mode >> 12) + data
        one += bytes(-len(one) % 8)
        if len(out) + len(one) > length:
            break
        out += one
    return bytes(out)
