"""The object that an image is made from or refers to: a tar or a tar.gz, file or pipe.

What cannot be sought in becomes an unnamed temporary file first (in $TMPDIR);
a gzip stream is inflated once, in C, and the locations are kept where inflating
can start again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import IO, Any, Self

from rafs_v6._writer import ffi, lib
from rafs_v6.writer.background import Background
from rafs_v6.writer.errors import SourceError

_PIECE = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
# A point for so many uncompressed bytes: 1.5 MB of memory for a GB, and a context begins that near.
_SPACING = 16 << 10


@dataclass(frozen=True, slots=True)
class GzipPoint:
    """Where inflating can start: ``struct rafs_gz_point`` (csrc/writer/writer.h)."""

    in_off: int
    out_off: int
    end_off: int
    window: int
    byte: int
    bits: int


class GzipIndex:
    """The points of a gzip file, by uncompressed offset; the last is its end."""

    def __init__(self, handle: Any, end: Any) -> None:
        self._handle = handle  # the points are its memory
        count = ffi.new("uint64_t *")
        self._points = lib.rafs_gunzip_points(handle, count)
        self._range = range(count[0])
        self._end = end

    def before(self, off: int) -> GzipPoint:
        """The last point at or before uncompressed byte ``off``."""
        i = bisect_right(self._range, off, key=lambda k: self._points[k].out_off)
        return _point(self._points[i - 1])

    def behind(self, off: int) -> GzipPoint:
        """The first point at or behind uncompressed byte ``off``."""
        i = bisect_left(self._range, off, key=lambda k: self._points[k].out_off)
        return _point(self._points[i] if i < len(self._range) else self._end)


def _point(p: Any) -> GzipPoint:
    return GzipPoint(p.in_off, p.out_off, p.end_off, p.window, p.byte, p.bits)


@dataclass(frozen=True, slots=True)
class TarFile:
    """``file``: the uncompressed tar, seekable; ``index``: where it was inflated
    from, None for a tar.

    ``sha256`` (hex, empty when it was not asked for) and ``size`` are those of
    the object that was read, tar or tar.gz.
    """

    file: IO[bytes]
    index: GzipIndex | None
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
    index = None
    sha256 = hashlib.sha256() if digest else None
    try:
        first += stream.read(_PIECE)
        if first.startswith(GZIP_MAGIC):
            file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
            index, size = _inflate(stream, first, file, sha256)
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
    return TarFile(file, index, sha256.hexdigest() if sha256 else "", size)


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
) -> tuple[GzipIndex, int]:
    handle = ffi.gc(lib.rafs_gunzip_new(file.fileno(), _SPACING), lib.rafs_gunzip_free)
    if handle == ffi.NULL:
        raise MemoryError("inflating")

    def feed(piece: bytes) -> None:
        _checked(lib.rafs_gunzip_feed(handle, piece, len(piece)))

    size = _each(stream, first, sha256, feed)
    end = ffi.new("struct rafs_gz_point *")
    _checked(lib.rafs_gunzip_end(handle, end))
    return GzipIndex(handle, end), size


def _checked(rc: int) -> None:
    if rc == -errno.EBADMSG:
        raise SourceError("the gzip stream is damaged, or other data follow it")
    if rc == -errno.ENODATA:
        raise SourceError("the gzip stream is cut short")
    if rc:
        hint = " (temporary files: set TMPDIR)" if rc == -errno.ENOSPC else ""
        raise OSError(-rc, f"inflating the source: {os.strerror(-rc)}{hint}")
