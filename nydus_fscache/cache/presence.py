"""Which parts of a cache file are there.

Two maps, with different promises:

* ``PageMap``, one bit a 4 KiB page, in a file below ``run/`` that is mapped
  shared: what the C core consults and sets.  It is true as long as the machine
  runs (the page cache holds what it says), survives the death of the daemon,
  and is thrown away when the boot id has changed.
* ``ChunkMapFile``, one bit a chunk, in nydusd's ``chunk_map`` format (sheet
  rafs-v6 section 5): what survives a power cut.  It lags the data, never leads
  them: bits are written after the data were synced (design rule 4).
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from nydus_fscache.errors import CacheDirError

PAGE = 4096

_CHUNK_MAP_HEADER = 4096
_MAGIC, _VERSION, _MAGIC2, _ALL_READY = 0x424D4150, 1, 0x434D4150, 0x4D4D4150
_SAFE_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def open_state_file(path: Path) -> int:
    """Open or make a file of ours for reading and writing; never through a symbolic link."""
    try:
        return os.open(path, _SAFE_OPEN, 0o600)
    except OSError as e:
        raise CacheDirError(
            f"cannot open {path}: {e.strerror}",
            hint="the state directory must be ours alone: remove what was planted there",
        ) from e


class PageMap:
    """Shared bitmap of ``size`` bytes' pages, least significant bit first."""

    def __init__(self, path: Path | None, size: int) -> None:
        """``path`` None: of this process alone, for files whose presence the kernel knows."""
        self.pages = -(-size // PAGE)
        length = max(1, -(-self.pages // 8))
        if path is None:
            self.memory = mmap.mmap(-1, length)
            return
        fd = open_state_file(path)
        try:
            if os.fstat(fd).st_size != length:
                os.ftruncate(fd, 0)
                os.ftruncate(fd, length)
            self.memory = mmap.mmap(fd, length)
        finally:
            os.close(fd)

    def close(self) -> None:
        self.memory.close()

    def _window(self, first: int, end: int) -> tuple[int, int, int]:
        """Byte range that holds pages [first, end), and their mask in it."""
        low, high = first // 8, -(-end // 8)
        return low, high, ((1 << (end - first)) - 1) << (first - low * 8)

    def set(self, first: int, end: int) -> None:
        """Mark pages [first, end); only while the C core does not know the object."""
        low, high, mask = self._window(first, end)
        value = int.from_bytes(self.memory[low:high], "little") | mask
        self.memory[low:high] = value.to_bytes(high - low, "little")

    def clear(self) -> None:
        """Forget everything; only while the C core does not know the object."""
        self.memory[:] = bytes(len(self.memory))

    def all_set(self, first: int, end: int) -> bool:
        low, high, mask = self._window(first, end)
        return int.from_bytes(self.memory[low:high], "little") & mask == mask

    def bytes_present(self) -> int:
        return int.from_bytes(self.memory, "little").bit_count() * PAGE


class ChunkMapFile:
    """nydusd's ``<blob>.blob.data.chunk_map``: 4096-byte header, most significant bit first."""

    def __init__(self, path: Path, nchunks: int) -> None:
        self._bits = bytearray(-(-nchunks // 8))
        self._nchunks = nchunks
        self._fd = open_state_file(path)
        length = _CHUNK_MAP_HEADER + len(self._bits)
        stored = os.pread(self._fd, length + 1, 0)
        magic, version, magic2, ready = struct.unpack_from("<4I", stored.ljust(16, b"\0"))
        if len(stored) != length or (magic, version, magic2) != (_MAGIC, _VERSION, _MAGIC2):
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._fd, length)
            os.pwrite(self._fd, struct.pack("<4I", _MAGIC, _VERSION, _MAGIC2, 0), 0)
        elif ready == _ALL_READY:
            self._bits[:] = b"\xff" * len(self._bits)
        else:
            self._bits[:] = stored[_CHUNK_MAP_HEADER:]

    def close(self) -> None:
        os.close(self._fd)

    def has(self, first: int, count: int) -> bool:
        """Are chunks [first, first + count) all recorded?"""
        return all(self._bits[i >> 3] & (0x80 >> (i & 7)) for i in range(first, first + count))

    def forget(self) -> None:
        """Drop every bit: the data file is not what the bits were recorded for."""
        self._bits[:] = bytes(len(self._bits))
        os.pwrite(self._fd, struct.pack("<4I", _MAGIC, _VERSION, _MAGIC2, 0), 0)
        os.pwrite(self._fd, self._bits, _CHUNK_MAP_HEADER)

    def record(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Set chunks (first, count) and write the bytes that changed.  Data were synced before."""
        low, high = len(self._bits), 0
        for first, count in ranges:
            for i in range(first, first + count):
                self._bits[i >> 3] |= 0x80 >> (i & 7)
            low, high = min(low, first >> 3), max(high, (first + count + 7) >> 3)
        if low < high:
            os.pwrite(self._fd, self._bits[low:high], _CHUNK_MAP_HEADER + low)
