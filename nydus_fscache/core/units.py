"""Columns and digests of a decoded chunk table (``struct rafs_blob``, csrc/codec/rafs.h)."""

from __future__ import annotations

from typing import Any

from nydus_fscache._core import ffi
from rafs_v6._codec import ffi as codec_ffi
from rafs_v6._codec import lib as codec


def unit_columns(blob: Any, count: int) -> tuple[list[int], list[int], list[int]]:
    """Of each unit of a ``struct rafs_blob``: coff, clen, ulen (csrc/codec/rafs.h)."""
    if not count:
        return [], [], []
    record = codec_ffi.sizeof("struct rafs_unit")
    table = memoryview(codec_ffi.buffer(blob.units, count * record))
    at = {name: field.offset for name, field in codec_ffi.typeof("struct rafs_unit").fields}
    coff = table.cast("Q")[at["coff"] // 8 :: record // 8]
    words = table.cast("I")
    clen, ulen = (words[at[name] // 4 :: record // 4] for name in ("clen", "ulen"))
    return coff.tolist(), clen.tolist(), ulen.tolist()


def verify_chunk(blob: Any, chunk: int, data: bytes) -> bool:
    """Are these the plain bytes of a chunk, by its digest?"""
    with ffi.from_buffer("uint8_t[]", data) as plain:
        return bool(codec.rafs_chunk_verify(blob, chunk, plain) == 0)
