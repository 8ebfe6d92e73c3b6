"""Compressors and AES-XTS: against other implementations, and against input that lies."""

from __future__ import annotations

import errno
import gzip
import random

import lz4.block
import pytest
import zstandard
from codec_kit import Decoder, Map, compress, xts
from hypothesis import given
from hypothesis import strategies as st

from rafs_v6._codec import ffi, lib

NONE, LZ4, GZIP, ZSTD = 0, 1, 2, 3
TEXT = b"lorem ipsum dolor sit amet " * 4000
NOISE = random.Random(5).randbytes(70000)
KEY, IV = bytes(range(32)), bytes(range(100, 116))


def packed(compressor: int, data: bytes) -> bytes:
    """By other people's code."""
    if compressor == LZ4:
        return bytes(lz4.block.compress(data, store_size=False))
    if compressor == GZIP:
        return gzip.compress(data, mtime=0)
    if compressor == ZSTD:
        return zstandard.ZstdCompressor(level=3).compress(data)
    return data


@pytest.mark.parametrize("compressor", [NONE, LZ4, GZIP, ZSTD])
@pytest.mark.parametrize("data", [b"x", TEXT, NOISE], ids=["one", "text", "noise"])
def test_decompress(compressor: int, data: bytes) -> None:
    decoder = Decoder()
    stored = packed(compressor, data)
    assert decoder.decompress(compressor, stored, len(data)) == data
    for wrong in (len(data) - 1, len(data) + 1):
        assert decoder.decompress(compressor, stored, wrong) == -errno.EBADMSG
    for cut in {0, 1, len(stored) // 2, len(stored) - 1} - {len(stored)}:
        assert decoder.decompress(compressor, stored[:cut], len(data)) == -errno.EBADMSG
    assert decoder.decompress(compressor, stored, len(data)) == data  # errors leave nothing behind


@pytest.mark.parametrize("compressor", [NONE, LZ4, ZSTD])
@given(data=st.binary(max_size=3000))
def test_compress(compressor: int, data: bytes) -> None:
    stored = compress(compressor, data)
    assert Decoder().decompress(compressor, stored, len(data)) == data
    if compressor == ZSTD:
        assert zstandard.ZstdDecompressor().decompress(stored) == data


def test_compress_needs_its_bound() -> None:
    bound = lib.rafs_compress_bound(ZSTD, 100)
    out = ffi.new("uint8_t[]", 9999)
    assert lib.rafs_compress(ZSTD, 3, bytes(100), 100, out, bound - 1) == -errno.EINVAL
    assert lib.rafs_compress(GZIP, 3, bytes(100), 100, out, 9999) == -errno.ENOTSUP


def test_zstd_frame_is_the_one_that_nydus_image_writes() -> None:
    frame = compress(ZSTD, b"hello nydus\n" + b"A" * 5000)
    assert frame.hex() == "28b52ffd609412a500006868656c6c6f206e796475730a41010084d3832f"


@pytest.mark.parametrize("compressor", [LZ4, GZIP, ZSTD])
def test_bombs_stop_at_the_stated_size(compressor: int) -> None:
    bomb = packed(compressor, bytes(64 << 20))
    assert Decoder().decompress(compressor, bomb, 4096) == -errno.EBADMSG


def test_zstd_takes_one_plain_frame_only() -> None:
    frame = packed(ZSTD, TEXT)
    decoder = Decoder()
    assert decoder.decompress(ZSTD, frame + frame, 2 * len(TEXT)) == -errno.EBADMSG
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0junk"
    assert decoder.decompress(ZSTD, skippable + frame, len(TEXT)) == -errno.EBADMSG
    assert decoder.decompress(ZSTD, frame + b"\0", len(TEXT)) == -errno.EBADMSG


def test_gzip_checks_its_trailer() -> None:
    stored = bytearray(packed(GZIP, TEXT))
    stored[-5] ^= 1
    assert Decoder().decompress(GZIP, bytes(stored), len(TEXT)) == -errno.EBADMSG


def test_unknown_compressor() -> None:
    assert Decoder().decompress(4, b"x", 1) == -errno.ENOTSUP


def test_xts_vector_15_of_ieee_1619() -> None:
    key = bytes(range(0xFF, 0xEF, -1)) + bytes(range(0xBF, 0xAF, -1))
    iv = bytes.fromhex("9a785634120000000000000000000000")
    plain = bytes(range(17))
    cipher = bytes.fromhex("6c1625db4671522d3d7599601de7ca09ed")
    assert xts(True, key, iv, plain) == cipher
    assert xts(False, key, iv, cipher) == plain


@pytest.mark.parametrize("length", [*range(1, 70), 4096, 4097, 16 << 20])
def test_xts_round_trip(length: int) -> None:
    data = NOISE[:length] if length < 9999 else bytes(length)
    sealed = xts(True, KEY, IV, data)
    assert isinstance(sealed, bytes)
    assert len(sealed) == (18 if length < 16 else length)
    assert sealed[:length] != data
    assert xts(False, KEY, IV, sealed) == data


def test_xts_refusals() -> None:
    assert xts(True, bytes(32), IV, bytes(64)) == -errno.EINVAL  # halves of the key are equal
    assert xts(False, bytes(32), IV, bytes(64)) == -errno.EINVAL
    assert xts(True, KEY, IV, b"") == -errno.EINVAL
    for short in range(16):
        assert xts(False, KEY, IV, bytes(short)) == -errno.EINVAL
    assert xts(True, KEY, IV, bytes((16 << 20) + 1)) == -errno.EINVAL


def encrypted_unit(data: bytes, stored: bytes, flags: int, compressor: int = ZSTD) -> bytes | int:
    sealed = xts(True, KEY, IV, stored)
    assert isinstance(sealed, bytes)
    m = Map(1)
    m.blob.compressor, m.blob.encrypted, m.blob.key, m.blob.iv = compressor, 1, KEY, IV
    m.blob.units, m.blob.nunits = m.units, 1
    m.units[0].clen, m.units[0].ulen, m.units[0].count = len(sealed), len(data), 1
    m.units[0].flags = flags | lib.RAFS_UNIT_ENCRYPTED
    return m.decode_unit(Decoder(), 0, sealed)


LOOKS_PADDED = b"0123456789abcde\x0a\x78\x90"


@pytest.mark.parametrize(
    "data", [b"x", NOISE[:15], NOISE[:16], NOISE[:18], LOOKS_PADDED, NOISE[:5000]]
)
def test_encrypted_units(data: bytes) -> None:
    compressed, batch = lib.RAFS_UNIT_COMPRESSED, lib.RAFS_UNIT_BATCH
    assert encrypted_unit(data, data, 0) == data
    # A tiny raw batch looks compressed, because padding makes its sizes differ.
    tiny = compressed if len(data) < 16 else 0
    assert encrypted_unit(data, data, batch | tiny) == data
    stored = packed(ZSTD, data)
    assert encrypted_unit(data, stored, compressed) == data
    assert encrypted_unit(data, stored[:-1], compressed) == -errno.EBADMSG


def test_compressed_unit_that_looks_padded() -> None:
    """18 stored bytes with the mark at their end are tried as they are, too."""
    literals = LOOKS_PADDED[2:]
    block = bytes([0xF0, len(literals) - 15]) + literals  # LZ4: 16 literals, no match
    assert len(block) == 18
    assert encrypted_unit(literals, block, lib.RAFS_UNIT_COMPRESSED, LZ4) == literals
