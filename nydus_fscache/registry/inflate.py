"""Layers as plain tars: gzip, zstd or neither, told by their first bytes, as they stream.

Memory is bounded whatever the input unpacks to; what is cut short or followed by
other data is an error, never a shorter tar.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import cffi

from nydus_fscache.errors import BadImage

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"  # behind a byte 0x50 to 0x5f: zstd:chunked layers may begin with it
_PIECE = 1 << 20
_HEAD = 4  # bytes that tell the kind

_ZSTD = """
typedef struct { const void *src; size_t size; size_t pos; } ZSTD_inBuffer;
typedef struct { void *dst; size_t size; size_t pos; } ZSTD_outBuffer;
void *ZSTD_createDStream(void);
size_t ZSTD_freeDStream(void *zds);
size_t ZSTD_decompressStream(void *zds, ZSTD_outBuffer *output, ZSTD_inBuffer *input);
unsigned ZSTD_isError(size_t code);
const char *ZSTD_getErrorName(size_t code);
"""


class Inflate:
    """Feed it the layer; it yields the tar.  One of its kind per layer."""

    def __init__(self) -> None:
        self._head = b""
        self._way: _Gzip | _Zstd | _Plain | None = None

    @property
    def is_gzip(self) -> bool:
        """Known when the first bytes came."""
        return isinstance(self._way, _Gzip)

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """``BadImage`` when the stream is damaged."""
        if self._way is None:
            self._head += data
            if len(self._head) < _HEAD:
                return
            data, self._head = self._head, b""
            self._way = _choose(data)
        yield from self._way.feed(bytes(data))

    def end(self) -> None:
        """All came; ``BadImage`` when more is due."""
        if self._head:
            raise BadImage("the layer is too short to be a tar")
        if self._way is not None:
            self._way.end()


def _choose(data: bytes) -> _Gzip | _Zstd | _Plain:
    if data.startswith(GZIP_MAGIC):
        return _Gzip()
    if data.startswith(ZSTD_MAGIC) or (data[0] & 0xF0 == 0x50 and data[1:4] == _SKIPPABLE):
        return _Zstd()
    return _Plain()


class _Plain:
    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data

    def end(self) -> None:
        pass


class _Gzip:
    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)
        self._between = False  # members

    def feed(self, data: bytes) -> Iterator[bytes]:
        rest = data
        try:
            while rest:
                if self._between:
                    # Some tools pad with zeros; another member is what else may follow.
                    rest = rest.lstrip(b"\0")
                    if not rest:
                        return
                    self._inflate, self._between = zlib.decompressobj(wbits=31), False
                out = self._inflate.decompress(rest, _PIECE)
                rest = self._inflate.unconsumed_tail
                if out:
                    yield out
                if self._inflate.eof:
                    rest, self._between = self._inflate.unused_data, True
                elif not out and not rest:
                    return
        except zlib.error as e:
            raise BadImage(
                f"the gzip data of the layer are damaged: {e}", hint="push the image again"
            ) from e

    def end(self) -> None:
        if not self._between:
            raise BadImage("the gzip data of the layer are cut short", hint="push the image again")


@cache
def _library() -> tuple[Any, Any]:
    """The one that the codec is linked with."""
    ffi = cffi.FFI()
    ffi.cdef(_ZSTD)
    return ffi, ffi.dlopen("libzstd.so.1")


class _Zstd:
    def __init__(self) -> None:
        self._ffi, self._lib = _library()
        self._stream = self._ffi.gc(self._lib.ZSTD_createDStream(), self._lib.ZSTD_freeDStream)
        if self._stream == self._ffi.NULL:
            raise MemoryError("zstd")
        self._out = bytearray(_PIECE)
        self._due = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        ffi, lib = self._ffi, self._lib
        source = ffi.from_buffer(data)
        taken = ffi.new("ZSTD_inBuffer *", {"src": source, "size": len(data), "pos": 0})
        target = ffi.from_buffer(self._out)
        while True:
            made = ffi.new("ZSTD_outBuffer *", {"dst": target, "size": _PIECE, "pos": 0})
            due = lib.ZSTD_decompressStream(self._stream, made, taken)
            if lib.ZSTD_isError(due):
                name = ffi.string(lib.ZSTD_getErrorName(due)).decode()
                raise BadImage(
                    f"the zstd data of the layer are damaged: {name}", hint="push the image again"
                )
            self._due = due
            if made.pos:
                yield bytes(memoryview(self._out)[: made.pos])
            if taken.pos == len(data) and made.pos < _PIECE:
                return

    def end(self) -> None:
        if self._due:
            raise BadImage("the zstd data of the layer are cut short", hint="push the image again")
