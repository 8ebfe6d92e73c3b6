"""Chunks by digest and size: what is there already is not stored again."""

from __future__ import annotations

from typing import Any

from rafs_v6._writer import ffi, lib
from rafs_v6.writer.locations import ChunkLocations


class ChunkIndex:
    """Chunks by digest and uncompressed size.  ``locations``: those that are referred to instead of
    being stored, by their numbers; numbers behind these are the caller's."""

    def __init__(self) -> None:
        self.locations = ChunkLocations()
        self._keys: Any = ffi.gc(lib.rafs_keys_new(), lib.rafs_keys_free)
        if self._keys == ffi.NULL:
            raise MemoryError("chunks by digest")

    def number(self, digest: Any, size: int) -> int:
        """That of the chunk; of a new one, how many there were before."""
        number = int(lib.rafs_keys_number(self._keys, digest, size))
        if number < 0:
            raise MemoryError("chunks by digest")
        return number

    def numbers(self, chunks: Any, count: int, out: Any) -> None:
        """The same of ``count`` chunks, a ``struct rafs_read_chunk[]``, to ``out``."""
        if lib.rafs_keys_numbers(self._keys, chunks, count, out):
            raise MemoryError("chunks by digest")

    def forget(self) -> None:
        """Nothing is looked up any more: a bootstrap needs the room."""
        ffi.release(self._keys)
        self.locations = ChunkLocations()
