"""Chunks that another blob on this node has already: found by digest, copied instead of fetched.

What is copied is verified like what is fetched: a chunk is taken only when its
bytes match the digest that its own image states.  Only blobs that are open are
looked into, and only where both sides have digests.  The index of a blob is made
when a second one is open, and not before.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from nydus_fscache.cache.presence import PAGE
from nydus_fscache.core import verify_chunk

if TYPE_CHECKING:
    from nydus_fscache.cache.object import CacheObject

HAS_DIGEST = 0x1  # RAFS_CHUNK_HAS_DIGEST of csrc/rafs.h

_Key = tuple[int, bytes]  # digest algorithm, digest


def _key(blob: Any, chunk: int) -> _Key | None:
    record = blob.chunks[chunk]
    return (int(blob.digester), bytes(record.digest)) if record.flags & HAS_DIGEST else None


def holds_chunk(fd: int, blob: Any, chunk: int) -> bool:
    """Has a flat file the bytes of a chunk at their place, by the digest, and zeros behind them?"""
    record = blob.chunks[chunk]
    if not record.flags & HAS_DIGEST:
        return False
    size = int(record.usize)
    try:
        data = os.pread(fd, size + -size % PAGE, record.uoff)
    except OSError:  # what this disk cannot give, the network can
        return False
    return len(data) >= size and not any(data[size:]) and verify_chunk(blob, chunk, data[:size])


class Copies:
    """Thread-safe.  Once ``remove`` has returned, a blob's descriptor is not read any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._indexes: dict[CacheObject, dict[_Key, int] | None] = {}

    def add(self, obj: CacheObject) -> None:
        with self._lock:
            if obj.chunks.digest_source != "none":
                self._indexes[obj] = None

    def remove(self, obj: CacheObject) -> None:
        with self._lock:
            self._indexes.pop(obj, None)

    def find(self, obj: CacheObject, chunk: int) -> bytes | None:
        """The plain bytes of ``chunk`` of ``obj`` out of another blob, verified."""
        if len(self._indexes) < 2:  # itself and another; a hint only, so without the lock
            return None
        blob = obj.chunks.blob
        key = _key(blob, chunk)
        if key is None:
            return None
        size = int(blob.chunks[chunk].usize)
        with self._lock:
            for other in self._indexes:
                if other is not obj:
                    data = self._read(other, key, size)
                    if data is not None and verify_chunk(blob, chunk, data):
                        return data
        return None

    def _read(self, other: CacheObject, key: _Key, size: int) -> bytes | None:
        index = self._indexes[other]
        if index is None:
            keys = ((_key(other.chunks.blob, i), i) for i in range(other.chunks.nchunks))
            index = self._indexes[other] = {k: i for k, i in keys if k is not None}
        found = index.get(key)
        if found is None:
            return None
        record = other.chunks.blob.chunks[found]
        if record.usize != size or not other.has(record.uoff, size):
            return None
        try:
            data = os.pread(other.fill_fd, size, record.uoff)
        except OSError:  # what this disk cannot give, the network can
            return None
        return data if len(data) == size else None
