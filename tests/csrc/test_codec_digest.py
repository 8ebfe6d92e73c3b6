"""Digests against independent implementations, on this processor and as a lesser one would run."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import blake3
import pytest
from codec_kit import digest

from rafs_v6._codec import ffi, lib

CSRC = Path(__file__).parents[2] / "csrc" / "codec"
DATA = random.Random(3).randbytes(16 << 20)
LENGTHS = [
    *range(300),
    *(k * 1024 + d for k in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 255) for d in (-1, 0, 1)),
    *(k * 262144 + d for k in (1, 2, 3, 5) for d in (-1024, -1, 0, 1, 1024, 1025)),
    1 << 20,
    (16 << 20) - 1,
    16 << 20,
]


def crc32c_slowly(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_blake3_of_many_lengths() -> None:
    for n in LENGTHS:
        assert digest(0, DATA[:n]) == blake3.blake3(DATA[:n]).digest(), n


def test_sha256_of_many_lengths() -> None:
    for n in (*range(130), 4096, 1 << 20):
        assert digest(1, DATA[:n]) == hashlib.sha256(DATA[:n]).digest(), n


def test_unknown_digester() -> None:
    assert lib.rafs_digest(2, b"", 0, ffi.new("uint8_t[32]")) == -errno.ENOTSUP


def test_crc32c() -> None:
    assert lib.rafs_crc32c(b"123456789", 9) == 0xE3069283  # the check value of CRC-32C
    assert lib.rafs_crc32c(b"hello nydus\n", 12) == 0x25BB7B2B  # format.md 7.1
    for n in range(70):
        assert lib.rafs_crc32c(DATA[:n], n) == crc32c_slowly(DATA[:n])


def compiled(directory: Path, *flags: str) -> ctypes.CDLL:
    out = directory / "lesser.so"
    sources = [str(CSRC / name) for name in ("blake3.c", "digest.c", "crypto.c")]
    command = ["gcc", "-shared", "-fPIC", "-O2", "-std=gnu11", f"-I{CSRC}", "-o", str(out)]
    subprocess.run([*command, *flags, *sources], check=True)
    return ctypes.CDLL(str(out))


@pytest.mark.parametrize("lanes", [1, 4, 8])
def test_blake3_on_lesser_processors(tmp_path: Path, lanes: int) -> None:
    run: Callable[[bytes, ctypes.c_size_t, ctypes.Array[ctypes.c_char]], None]
    run = compiled(tmp_path, f"-DBLAKE3_MAX_LANES={lanes}").rafs_blake3
    out = ctypes.create_string_buffer(32)
    for n in LENGTHS[:-2]:
        run(DATA[:n], ctypes.c_size_t(n), out)
        assert out.raw == blake3.blake3(DATA[:n]).digest(), n


def test_crc32c_on_lesser_processors(tmp_path: Path) -> None:
    run = compiled(tmp_path, "-DCRC32C_PORTABLE").rafs_crc32c
    run.restype = ctypes.c_uint32
    for n in (*range(70), 4096, 100001):
        assert run(DATA[:n], ctypes.c_size_t(n)) == lib.rafs_crc32c(DATA[:n], n)
