"""The last layer of a Nydus image: a tar.gz of the bootstrap and the blobs' metadata.

Every byte of the tar is the same for the same content; nothing is held in memory twice.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from nydus_fscache.registry.store import PIECE, BlobStore
from rafs_v6.values import dataclass

_BLOCK = 512
_GZIP_HEAD = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # no time, no name, no system
_LEVEL = 6
_DIRECTORY = b"5"
_REGULAR = b"0"


@dataclass(frozen=True, slots=True)
class Entry:
    """``source``: the content, or the file that has it."""

    name: str
    mode: int
    source: bytes | Path | None = None  # None: a directory

    def size(self) -> int:
        if self.source is None:
            return 0
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def pieces(self) -> Iterator[bytes]:
        if isinstance(self.source, bytes):
            yield self.source
        elif self.source is not None:
            with self.source.open("rb") as file:
                while piece := file.read(PIECE):
                    yield piece


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """``digest`` and ``size`` of the tar.gz; ``diff_id`` of the tar."""

    digest: str
    size: int
    diff_id: str


def tar_pieces(entries: Iterable[Entry]) -> Iterator[bytes]:
    for entry in entries:
        size = entry.size()
        yield _header(entry, size)
        yield from entry.pieces()
        yield bytes(-size % _BLOCK)
    yield bytes(2 * _BLOCK)


def _header(entry: Entry, size: int) -> bytes:
    out = bytearray(_BLOCK)
    name = entry.name.encode()
    if len(name) > 100:
        raise ValueError(f"{entry.name}: a name of more than 100 bytes")
    out[: len(name)] = name
    out[100:108] = b"%07o\0" % entry.mode
    out[108:116] = out[116:124] = b"0000000\0"
    out[124:136] = b"%011o\0" % size if size < 8 << 30 else b"\x80" + size.to_bytes(11, "big")
    out[136:148] = b"00000000000\0"
    out[156:157] = _DIRECTORY if entry.source is None else _REGULAR
    out[257:265] = b"ustar\x0000"
    out[329:337] = out[337:345] = b"0000000\0"
    out[148:156] = b" " * 8
    out[148:156] = b"%06o\0 " % sum(out)
    return bytes(out)


def gzip_pieces(pieces: Iterable[bytes], plain: hashlib._Hash) -> Iterator[bytes]:
    """``plain`` is fed with what goes in."""
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -15)
    crc = size = 0
    yield _GZIP_HEAD
    for piece in pieces:
        plain.update(piece)
        crc = zlib.crc32(piece, crc)
        size += len(piece)
        if out := deflate.compress(piece):
            yield out
    yield deflate.flush() + struct.pack("<II", crc, size & 0xFFFFFFFF)


def store_layer(store: BlobStore, entries: Iterable[Entry]) -> StoredLayer:
    """Make the layer and put it there."""
    plain, packed = hashlib.sha256(), hashlib.sha256()
    size = 0
    writer = store.writer()
    try:
        for piece in gzip_pieces(tar_pieces(entries), plain):
            packed.update(piece)
            size += len(piece)
            writer.write(piece)
        digest = f"sha256:{packed.hexdigest()}"
        writer.finish(digest)
    finally:
        writer.abort()
    return StoredLayer(digest, size, f"sha256:{plain.hexdigest()}")
