"""A dm-verity hash tree, format 1, sha256 without salt, appended to what it protects.

Layout as veritysetup's (cryptsetup, lib/verity/verity_hash.c): the level of the
root first, the leaves last; hash blocks of 4096 bytes, padded with zeros.
"""

from __future__ import annotations

import hashlib
import os

from rafs_v6.format.erofs import round_up
from rafs_v6.values import dataclass

HASH_BLOCK = 4096
_DIGEST = 32
_PIECE = 4 << 20


@dataclass(frozen=True, slots=True)
class Verity:
    """What a device-mapper table needs; sizes and offsets in bytes but for ``data_blocks``."""

    data_block_size: int
    data_blocks: int
    hash_offset: int
    root_digest: bytes

    @property
    def options(self) -> str:
        """Those of ``veritysetup``, in the words that nydus-snapshotter looks for."""
        return (
            f'--no-superblock --format=1 -s "" --hash=sha256'
            f" --data-block-size={self.data_block_size} --hash-block-size={HASH_BLOCK}"
            f" --data-blocks {self.data_blocks} --hash-offset {self.hash_offset}"
            f" {self.root_digest.hex()}"
        )


def append_verity(fd: int, size: int, block_size: int) -> Verity:
    """Hash the first ``size`` bytes of ``fd``, whole blocks, and write the tree behind them."""
    levels = [_leaves(fd, size, block_size)]
    while len(levels[-1]) > HASH_BLOCK:
        levels.append(_level(levels[-1]))
    start = round_up(size, HASH_BLOCK)
    at = start
    for level in reversed(levels):
        os.pwrite(fd, level, at)
        at += len(level)
    return Verity(block_size, size // block_size, start, hashlib.sha256(levels[-1]).digest())


def _leaves(fd: int, size: int, block_size: int) -> bytes:
    zeros = bytes(block_size)
    zero_digest = hashlib.sha256(zeros).digest()
    out = bytearray()
    for at in range(0, size, _PIECE):
        piece = os.pread(fd, min(_PIECE, size - at), at)
        for i in range(0, len(piece), block_size):
            block = piece[i : i + block_size]
            out += zero_digest if block == zeros else hashlib.sha256(block).digest()
    return _padded(out)


def _level(below: bytes) -> bytes:
    return _padded(
        b"".join(
            hashlib.sha256(below[at : at + HASH_BLOCK]).digest()
            for at in range(0, len(below), HASH_BLOCK)
        )
    )


def _padded(digests: bytes | bytearray) -> bytes:
    return bytes(digests) + bytes(-len(digests) % HASH_BLOCK)
