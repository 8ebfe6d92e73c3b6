"""The object that an image is made from or refers to: a tar or a tar.gz, file or pipe.

``open_tar_file``: what cannot be sought in becomes an unnamed temporary file first (in $TMPDIR).
``GzipStream``: a gzip stream is inflated as it is read, and the locations are kept where
inflating can start again, with the bytes that it needs there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import IO, Any, Self

from rafs_v6._writer import ffi, lib
from rafs_v6.values import dataclass
from rafs_v6.writer.background import Background
from rafs_v6.writer.errors import SourceError

_PIECE = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
# A point for so many uncompressed bytes: 1.5 MB of memory for a GB, and a context begins that near.
_SPACING = 16 << 10
_WINDOW = 32 << 10  # of deflate
_PLAIN = 256 << 10  # that is inflated at once


@dataclass(frozen=True, slots=True)
class GzipPoint:
    """Where inflating can start: ``struct rafs_gz_point`` (csrc/writer/writer.h)."""

    in_off: int
    out_off: int
    end_off: int
    window: int
    byte: int
    bits: int


class GzipStream:
    """Read once, to its end, where ``size`` and ``sha256`` are those of the whole object.

    What it keeps of the plain bytes is bounded, as long as ``start_at`` is called for what is read.
    """

    def __init__(self, stream: IO[bytes], first: bytes) -> None:
        """``first`` was read of ``stream`` already."""
        self._stream = stream
        self._handle = ffi.gc(lib.rafs_gunzip_new(-1, _SPACING), lib.rafs_gunzip_free)
        if self._handle == ffi.NULL:
            raise MemoryError("inflating")
        self._end = ffi.new("struct rafs_gz_point *")
        self._count = ffi.new("uint64_t *")
        self._buffer = bytearray(_PLAIN)
        self._to = ffi.from_buffer("uint8_t[]", self._buffer)
        self._hash, self._hashing = hashlib.sha256(), Background()
        self._start: tuple[GzipPoint, bytes] | None = None
        self._read = self._marked = 0
        self.size = 0
        self.is_whole = False
        self._feed(first)

    def read(self, length: int, /) -> bytes:
        """Plain bytes; none only at the end."""
        while not self.is_whole:
            want = min(length, _PLAIN)
            got = lib.rafs_gunzip_read(self._handle, self._to, want)
            _checked(min(got, 0))
            if got:
                self._read += got
                if self._read - self._marked > _PIECE:
                    self.start_at(self._marked + _PIECE)
                return bytes(memoryview(self._buffer)[:got])
            piece = self._stream.read(_PIECE)
            if piece:
                self._feed(piece)
            else:
                _checked(lib.rafs_gunzip_end(self._handle, self._end))
                self.is_whole = True
        return b""

    def _feed(self, piece: bytes) -> None:
        self._hashing.start(partial(self._hash.update, piece))
        self.size += len(piece)
        self._piece = ffi.from_buffer("uint8_t[]", piece)
        lib.rafs_gunzip_input(self._handle, self._piece, len(piece))

    def start_at(self, off: int) -> tuple[GzipPoint, bytes]:
        """The last point at or before byte ``off``, and the window that it needs.

        Of what was read, or more than that, so far; ``off`` never falls: what only earlier bytes
        need is forgotten.
        """
        points, count = self._points()
        i = bisect_right(range(count), off, key=lambda k: points[k].out_off)
        if not i:
            raise MemoryError("inflating")
        point = _point(points[i - 1])
        if self._start is None or self._start[0] != point:
            window = bytearray(point.window)
            to = ffi.from_buffer("uint8_t[]", window)
            _checked(lib.rafs_gunzip_before(self._handle, point.out_off, to, point.window))
            self._start = point, bytes(window)
        self._marked = off
        lib.rafs_gunzip_drop(self._handle, max(0, off - _WINDOW))
        return self._start

    def behind(self, off: int) -> GzipPoint | None:
        """The first point at or behind byte ``off``; None when it has not been read so far."""
        points, count = self._points()
        i = bisect_left(range(count), off, key=lambda k: points[k].out_off)
        if i == count:
            return _point(self._end) if self.is_whole else None
        return _point(points[i])

    def _points(self) -> tuple[Any, int]:
        points = lib.rafs_gunzip_points(self._handle, self._count)
        return points, self._count[0]

    @property
    def sha256(self) -> str:
        """Of the object as it is stored, in hex."""
        self._hashing.finish()
        return self._hash.hexdigest()

    def close(self) -> None:
        self._hashing.close()
        self._stream.close()


def _point(p: Any) -> GzipPoint:
    return GzipPoint(p.in_off, p.out_off, p.end_off, p.window, p.byte, p.bits)


@dataclass(frozen=True, slots=True)
class TarFile:
    """``file``: the uncompressed tar, seekable; ``is_gzip``: it was inflated.

    ``sha256`` (hex, empty when it was not asked for) and ``size`` are those of
    the object that was read, tar or tar.gz.
    """

    file: IO[bytes]
    is_gzip: bool
    sha256: str
    size: int

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.file.close()


def open_tar_file(stream: IO[bytes], first: bytes = b"", *, digest: bool) -> TarFile:
    """Takes ``stream`` over, of which ``first`` was read already (two bytes, or none).

    Raises ``SourceError`` for a damaged gzip stream, ``OSError`` of reading and of the copy.
    """
    file: IO[bytes] = stream
    sha256 = hashlib.sha256() if digest else None
    try:
        first += stream.read(_PIECE)
        is_gzip = first.startswith(GZIP_MAGIC)
        if is_gzip:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
            size = _inflate(stream, first, file, sha256)
        elif not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
            size = _each(stream, first, sha256, file.write)
        else:
            size = os.fstat(stream.fileno()).st_size
            if digest:
                _each(stream, first, sha256, lambda _: None)
        file.seek(0)
    except BaseException:
        stream.close()
        file.close()
        raise
    if file is not stream:
        stream.close()
    return TarFile(file, is_gzip, sha256.hexdigest() if sha256 else "", size)


def _each(
    stream: IO[bytes], piece: bytes, sha256: hashlib._Hash | None, use: Callable[[bytes], object]
) -> int:
    """``use`` ``piece`` and the rest of ``stream``, hashed beside that; bytes in all."""
    size = 0
    hashing = Background()
    try:
        while piece:
            if sha256 is not None:
                hashing.start(partial(sha256.update, piece))
            use(piece)
            size += len(piece)
            piece = stream.read(_PIECE)
        hashing.finish()
    finally:
        hashing.close()
    return size


def _inflate(
    stream: IO[bytes], first: bytes, file: IO[bytes], sha256: hashlib._Hash | None
) -> int:
    handle = ffi.gc(lib.rafs_gunzip_new(file.fileno(), _SPACING), lib.rafs_gunzip_free)
    if handle == ffi.NULL:
        raise MemoryError("inflating")

    def feed(piece: bytes) -> None:
        _checked(lib.rafs_gunzip_feed(handle, piece, len(piece)))

    size = _each(stream, first, sha256, feed)
    _checked(lib.rafs_gunzip_end(handle, ffi.new("struct rafs_gz_point *")))
    return size


def _checked(rc: int) -> None:
    if rc == -errno.EBADMSG:
        raise SourceError("the gzip stream is damaged, or other data follow it")
    if rc == -errno.ENODATA:
        raise SourceError("the gzip stream is cut short")
    if rc:
        hint = " (temporary files: set TMPDIR)" if rc == -errno.ENOSPC else ""
        raise OSError(-rc, f"inflating the source: {os.strerror(-rc)}{hint}")
