"""Which parts of a cache file are there.

Two maps, with different promises:

* ``PageMap``, one bit a 4 KiB page, in shared memory: what the C core consults
  and sets.  The keeper holds that memory beside the file's descriptor, so it is
  true for a successor and ends when the page cache that it speaks of may end.
* ``ChunkMapFile``, one bit a chunk, in nydusd's ``chunk_map`` format (format.md 5):
  what survives a power cut.  It lags the data, never leads them: bits are
  written after the data were synced (design rule 4).  They are true of one inode as it
  was then, which a stamp in the header tells: a copy (a restored backup, a cache brought
  from another node) may have been made while the data came.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

from nydus_fscache.files import open_state_file

log = logging.getLogger("presence")

PAGE = 4096
_LOOK = 1 << 20  # bytes of a page map that are looked at at once

_CHUNK_MAP_HEADER = 4096
_MAGIC, _VERSION, _MAGIC2, _ALL_READY = 0x424D4150, 1, 0x434D4150, 0x4D4D4150
_STAMP, _STAMP_OFF, _STAMP_MAGIC = struct.Struct("<8sQQ"), 64, b"fscache1"  # ours: in the padding


def _map_length(size: int) -> int:
    """Bytes of the page map of a file of ``size`` bytes."""
    return max(1, -(-size // (8 * PAGE)))


def shared_map(size: int) -> int:
    """Empty memory for a page map, as a descriptor.  All of it is allocated: the C core sets bits
    by a plain store, which must not meet a lack of memory (or of disk space)."""
    fd = os.memfd_create("nydus-fscache-pages", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(fd, 0, _map_length(size))
    except BaseException:
        os.close(fd)
        raise
    return fd


class PageMap:
    """Bitmap of ``size`` bytes' pages, least significant bit first."""

    def __init__(self, size: int, fd: int = -1) -> None:
        """``fd``: of ``shared_map``, borrowed; -1: memory of this process alone, for files whose
        presence the kernel knows."""
        self.memory = mmap.mmap(fd, _map_length(size))

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

    def clear(self, first: int, end: int) -> None:
        """The opposite, likewise."""
        low, high, mask = self._window(first, end)
        value = int.from_bytes(self.memory[low:high], "little") & ~mask
        self.memory[low:high] = value.to_bytes(high - low, "little")

    def all_set(self, first: int, end: int) -> bool:
        low, high, mask = self._window(first, end)
        return int.from_bytes(self.memory[low:high], "little") & mask == mask

    def any_set(self, first: int, end: int) -> bool:
        low, high, mask = self._window(first, end)
        return bool(int.from_bytes(self.memory[low:high], "little") & mask)

    def empty(self) -> bool:
        parts = range(0, len(self.memory), _LOOK)
        return not any(self.memory[at : at + _LOOK].strip(b"\0") for at in parts)

    def bytes_present(self) -> int:
        return int.from_bytes(self.memory, "little").bit_count() * PAGE


class ChunkMapFile:
    """nydusd's ``<blob>.blob.data.chunk_map``: 4096-byte header, most significant bit first."""

    def __init__(
        self,
        path: Path,
        nchunks: int,
        settle: Callable[[], None] = lambda: None,
        data_fd: int = -1,
    ) -> None:
        """``settle``: called once before the first bit is written, unless there are some; it makes
        durable what the bits depend on besides the data.  ``data_fd``: borrowed; for ``stamp``."""
        self._bits = bytearray(-(-nchunks // 8))
        self._settle = settle
        self._data_fd = data_fd
        self._fd = open_state_file(path)
        try:
            self._load(path)
        except BaseException:
            os.close(self._fd)
            raise
        self._settled = any(self._bits)

    def _load(self, path: Path) -> None:
        length = _CHUNK_MAP_HEADER + len(self._bits)
        stored = os.pread(self._fd, length + 1, 0)
        magic, version, magic2, ready = struct.unpack_from("<4I", stored.ljust(16, b"\0"))
        if len(stored) != length or (magic, version, magic2) != (_MAGIC, _VERSION, _MAGIC2):
            if stored:
                log.warning("%s is damaged: what is there is verified before use", path)
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._fd, length)
            os.pwrite(self._fd, struct.pack("<4I", _MAGIC, _VERSION, _MAGIC2, 0), 0)
        elif ready == _ALL_READY:
            self._bits[:] = b"\xff" * len(self._bits)
        else:
            self._bits[:] = stored[_CHUNK_MAP_HEADER:]

    def close(self) -> None:
        os.close(self._fd)

    def empty(self) -> bool:
        return not self._bits.strip(b"\0")

    def has(self, first: int, count: int) -> bool:
        """Are chunks [first, first + count) all recorded?"""
        return all(self._bits[i >> 3] & (0x80 >> (i & 7)) for i in range(first, first + count))

    def record(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Set chunks (first, count) and write the bytes that changed.  Data were synced before.

        After an ``OSError`` the same ranges must be recorded again.
        """
        if not self._settled:
            self._settle()
            self._settled = True
        low, high = len(self._bits), 0
        for first, count in ranges:
            for i in range(first, first + count):
                self._bits[i >> 3] |= 0x80 >> (i & 7)
            low, high = min(low, first >> 3), max(high, (first + count + 7) >> 3)
        if low < high:
            os.pwrite(self._fd, self._bits[low:high], _CHUNK_MAP_HEADER + low)
            if self._data_fd >= 0:
                stamp(self._fd, os.fstat(self._data_fd))


def stamp(fd: int, data: os.stat_result) -> None:
    """The bits of the chunk map ``fd`` are true of this data file as it is now."""
    os.pwrite(fd, _STAMP.pack(_STAMP_MAGIC, data.st_ino, data.st_ctime_ns), _STAMP_OFF)


def speaks_of(path: Path, data: os.stat_result) -> bool:
    """Is a chunk map, if there is one, about this data file, which nobody has touched since?

    A data file that was still being written when everything ended is none: its last writes are
    younger than the stamp.  False costs a look at the digests, not a fetch.
    """
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as f:
            stored = f.read(_CHUNK_MAP_HEADER)
    except FileNotFoundError:
        return True
    magic, ino, ctime_ns = _STAMP.unpack_from(stored.ljust(_CHUNK_MAP_HEADER, b"\0"), _STAMP_OFF)
    return (magic, ino, ctime_ns) == (_STAMP_MAGIC, data.st_ino, data.st_ctime_ns)


def is_recorded(fd: int, chunk: int) -> bool:
    """Has an open chunk map a chunk?  For one whose blob nobody has open."""
    magic, version, magic2, ready = struct.unpack("<4I", os.pread(fd, 16, 0).ljust(16, b"\0"))
    if (magic, version, magic2) != (_MAGIC, _VERSION, _MAGIC2):
        return False
    if ready == _ALL_READY:
        return True
    bits = os.pread(fd, 1, _CHUNK_MAP_HEADER + (chunk >> 3))
    return bool(bits) and bool(bits[0] & (0x80 >> (chunk & 7)))
