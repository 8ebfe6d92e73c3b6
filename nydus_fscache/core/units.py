"""Columns and digests of a decoded chunk table (``struct rafs_blob``, csrc/codec/rafs.h)."""

from __future__ import annotations

from array import array
from typing import Any

from nydus_fscache._core import ffi
from rafs_v6._codec import ffi as codec_ffi
from rafs_v6._codec import lib as codec


def unit_columns(blob: Any, count: int) -> tuple[array[int], array[int], array[int]]:
    """Of each unit of a ``struct rafs_blob``: coff, clen, ulen (csrc/codec/rafs.h).

    Arrays: lists of so many numbers take ten times the memory, and a mount waits for them."""
    columns = array("Q"), array("I"), array("I")
    if not count:
        return columns
    record = codec_ffi.sizeof("struct rafs_unit")
    table = memoryview(codec_ffi.buffer(blob.units, count * record))
    at = {name: field.offset for name, field in codec_ffi.typeof("struct rafs_unit").fields}
    wide, words = table.cast("Q"), table.cast("I")
    columns[0].frombytes(wide[at["coff"] // 8 :: record // 8].tobytes())
    columns[1].frombytes(words[at["clen"] // 4 :: record // 4].tobytes())
    columns[2].frombytes(words[at["ulen"] // 4 :: record // 4].tobytes())
    return columns


def first_chunks(blob: Any, count: int) -> array[int]:
    """The first chunk of each unit."""
    found = array("I")
    if count:
        record = codec_ffi.sizeof("struct rafs_unit")
        words = memoryview(codec_ffi.buffer(blob.units, count * record)).cast("I")
        at = dict(codec_ffi.typeof("struct rafs_unit").fields)["first"].offset
        found.frombytes(words[at // 4 :: record // 4].tobytes())
    return found


def units_present(blob: Any, count: int, flat_size: int, pages: Any) -> bytes:
    """A byte for each unit: 1 when all its pages are set in the bitmap ``pages``."""
    present = bytearray(count)
    if count:
        with (
            codec_ffi.from_buffer("uint8_t[]", pages) as bits,
            codec_ffi.from_buffer("uint8_t[]", present) as out,
        ):
            codec.rafs_units_present(blob, flat_size, bits, out)
    return bytes(present)


def verify_chunk(blob: Any, chunk: int, data: bytes) -> bool:
    """Are these the plain bytes of a chunk, by its digest?"""
    with ffi.from_buffer("uint8_t[]", data) as plain:
        return bool(codec.rafs_chunk_verify(blob, chunk, plain) == 0)
