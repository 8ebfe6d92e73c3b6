"""AES-128-XTS of what a blob stores (format.md 6.1).

The key lies in the bootstrap in clear: data are as safe as the bootstrap is.
"""

from __future__ import annotations

import os
from typing import Self

from rafs_v6._codec import ffi, lib
from rafs_v6.values import dataclass
from rafs_v6.writer.errors import BuildError

_HALF, _PADDED = 16, 18
_PAD_MARK = b"\x78\x90"  # ends what was padded before it was encrypted


def looks_padded(data: bytes) -> bool:
    """Would ``data``, encrypted, be read back cut?"""
    return len(data) == _PADDED and data.endswith(_PAD_MARK) and data[_HALF - 1] < _HALF


@dataclass(frozen=True, slots=True)
class XtsKey:
    """A blob's key, two different halves of 16 bytes, and the one tweak of all its units."""

    key: bytes
    iv: bytes

    @classmethod
    def random(cls) -> Self:
        key = os.urandom(2 * _HALF)
        while key[:_HALF] == key[_HALF:]:
            key = os.urandom(2 * _HALF)
        return cls(key, os.urandom(16))

    def encrypt(self, data: bytes) -> bytes:
        room = max(len(data), _PADDED)
        out = ffi.new("uint8_t[]", room)
        size = lib.rafs_xts_encrypt(self.key, self.iv, data, len(data), out, room)
        if size < 0:
            raise BuildError(
                f"{len(data)} bytes of blob.meta are too many to be encrypted: choose a larger"
                " --chunk-size"
            )
        return bytes(ffi.buffer(out, size))
