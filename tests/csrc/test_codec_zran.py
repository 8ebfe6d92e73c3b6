"""Inflating from the middle of gzip files: bits, windows, members, a misplaced start."""

from __future__ import annotations

import errno
import random
import struct
import zlib

import pytest
from codec_kit import Decoder, Map
from hypothesis import given
from hypothesis import strategies as st

from rafs_v6._codec import ffi, lib

RNG = random.Random(11)
WORDS = [RNG.randbytes(RNG.randrange(2, 9)) for _ in range(200)]


def text(length: int, seed: int) -> bytes:
    rng = random.Random(seed)
    return b"".join(rng.choice(WORDS) for _ in range(length // 3))[:length]


def deflate(data: bytes, window: bytes = b"") -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, -15, zdict=window)
    return packer.compress(data) + packer.flush()


def trailer(data: bytes) -> bytes:
    return struct.pack("<II", zlib.crc32(data), len(data))


def header(flags: int = 0) -> bytes:
    out = b"\x1f\x8b\x08" + bytes([flags]) + b"\0\0\0\0\0\x03"
    if flags & 4:
        out += struct.pack("<H", 700) + bytes(700)
    if flags & 8:
        out += b"a name.tar\0"
    if flags & 16:
        out += b"a comment\0"
    if flags & 2:
        out += b"hc"
    return out


def inflate(
    stored: bytes, length: int, *, bits: int = 0, byte: int = 0, window: bytes = b""
) -> bytes | int:
    m = Map(1)
    unit = m.units[0]
    unit.clen, unit.ulen, unit.flags = len(stored), length, lib.RAFS_UNIT_ZRAN
    unit.prime_bits, unit.prime_byte, unit.dict_len = bits, byte, len(window)
    dicts = ffi.new("uint8_t[]", window or b"\0")
    m.blob.units, m.blob.nunits = m.units, 1
    m.blob.dicts, m.blob.dicts_len = dicts, len(window)
    return m.decode_unit(Decoder(), 0, stored)


@pytest.mark.parametrize("bits", range(8))
@pytest.mark.parametrize("window", [b"", text(32768, 1)], ids=["start", "window"])
def test_bits_and_window(bits: int, window: bytes) -> None:
    data = text(200000, 2)
    stream = int.from_bytes(deflate(data, window), "little")
    byte = (stream << (8 - bits) & 0xFF) | ((1 << (8 - bits)) - 1 if bits else 0xFF)
    rest = stream >> bits
    stored = rest.to_bytes((rest.bit_length() + 7) // 8 + 1, "little")
    assert inflate(stored, len(data), bits=bits, byte=byte, window=window) == data
    assert inflate(stored, 1000, bits=bits, byte=byte, window=window) == data[:1000]
    if window:
        assert inflate(stored, len(data), bits=bits, byte=byte) != data


@pytest.mark.parametrize("flags", [0, 2, 4, 8, 16, 4 | 8 | 16 | 2])
def test_crosses_members(flags: int) -> None:
    parts = [text(5000, 3), b"", text(1, 4), text(70000, 5)]
    stored = deflate(parts[0]) + trailer(parts[0])
    for part in parts[1:]:
        stored += header(flags) + deflate(part) + trailer(part)
    data = b"".join(parts)
    assert inflate(stored, len(data)) == data
    assert inflate(stored, len(data) + 1) == -errno.EBADMSG
    assert inflate(stored[:-60], len(data)) == -errno.EBADMSG


@pytest.mark.parametrize("broken", [b"", b"\0", header()[:9], header(0x20), header(4)[:100]])
def test_next_member_is_none(broken: bytes) -> None:
    data = text(5000, 6)
    assert inflate(deflate(data) + trailer(data) + broken, 5001) == -errno.EBADMSG


@pytest.mark.parametrize("flags", [0, 8])
def test_context_that_starts_at_a_trailer(flags: int) -> None:
    """Upstream's window and bits belong to the member before: neither may be used."""
    before, data, after = text(3000, 7), text(4000, 8), text(500, 9)
    stored = trailer(before) + header(flags) + deflate(data) + trailer(data)
    stored += header() + deflate(after) + trailer(after)
    want = data + after
    assert inflate(stored, len(want), bits=5, byte=0xA5, window=before) == want


def test_good_data_that_only_look_like_a_trailer() -> None:
    """A stored block whose bytes 8.. are a gzip magic by chance is decoded as what it is."""
    data = b"abc" + header() + text(3000, 10)
    stored = b"\x01" + struct.pack("<HH", len(data), len(data) ^ 0xFFFF) + data
    assert stored[8:11] == b"\x1f\x8b\x08"
    assert inflate(stored, len(data)) == data


@given(stored=st.binary(min_size=1, max_size=300), bits=st.integers(0, 7), byte=st.integers(0, 255))
def test_any_bytes_end_in_time(stored: bytes, bits: int, byte: int) -> None:
    result = inflate(stored, 1000, bits=bits, byte=byte)
    assert result == -errno.EBADMSG or (isinstance(result, bytes) and len(result) == 1000)


def test_window_outside_of_the_dictionaries() -> None:
    m = Map(1)
    m.units[0].clen, m.units[0].ulen, m.units[0].flags = 9, 9, lib.RAFS_UNIT_ZRAN
    m.units[0].dict_len, m.units[0].dict_off = 100, (1 << 64) - 50
    m.blob.units, m.blob.nunits = m.units, 1
    m.blob.dicts, m.blob.dicts_len = ffi.new("uint8_t[100]"), 100
    assert m.decode_unit(Decoder(), 0, bytes(9)) == -errno.EINVAL
