"""A cache object over a plain file and the real C core, which runs without root: no kernel asks."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fetch_kit import FakeBackend

from nydus_fscache.cache.presence import ChunkMapFile, PageMap, shared_map
from nydus_fscache.core.core import Core
from nydus_fscache.fetch.cache_object import CacheObject
from nydus_fscache.fetch.job import Source
from nydus_fscache.fetch.queue import Fetcher
from rafs_v6._codec import ffi, lib

UNIT = 1 << 16


class Chunks:
    """Plain units of ``UNIT`` bytes, as of a tar, without digests.  ``digest_source`` says there
    are some, so no neighbours come along with a miss."""

    digest_source = "bootstrap"

    def __init__(self, count: int) -> None:
        self.nchunks = self.nunits = count
        self.flat_size = count * UNIT
        self._tables = (ffi.new("struct rafs_chunk[]", count), ffi.new("struct rafs_unit[]", count))
        self.blob: Any = ffi.new("struct rafs_blob *")
        assert lib.rafs_identity_map(self.flat_size, UNIT, *self._tables, self.blob) == 0

    def units_of(self, off: int, length: int) -> range:
        return range(off // UNIT, (off + length + UNIT - 1) // UNIT)

    def unit_range(self, unit: int) -> tuple[int, int]:
        return unit * UNIT, (unit + 1) * UNIT


@dataclass
class Rig:
    object: CacheObject
    core: Core
    fetcher: Fetcher
    backend: FakeBackend
    path: Path
    fd: int
    settled: list[CacheObject] = field(default_factory=list)

    def wait_for(self, *units: int, present: bool = True, patience_s: float = 10.0) -> None:
        until = time.monotonic() + patience_s
        while any(self.object.is_present(u) is not present for u in units):
            assert time.monotonic() < until
            time.sleep(0.005)

    def read(self, unit: int) -> None:
        """As a reader that misses it."""
        self.object.demand(unit * UNIT, 4096)


@contextmanager
def cache_object(base: Path, count: int = 16) -> Iterator[Rig]:
    memory = mmap.mmap(-1, Core.journal_size(64))
    Core.format_journal(memory, 64)
    core = Core(memory)
    fetcher = Fetcher(core.trim)
    chunks = Chunks(count)
    data = b"".join(bytes([u + 1]) * UNIT for u in range(count))
    backend = FakeBackend(data)
    path = base / "blob.data"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, chunks.flat_size)
    pages_fd = shared_map(chunks.flat_size)
    pages = PageMap(chunks.flat_size, pages_fd)
    obj = CacheObject(
        1, "blob", chunks, Source(backend, "blob"), core, fetcher, pages,
        ChunkMapFile(base / "blob.chunk_map", count), fd,
    )  # fmt: skip
    status = os.fstat(fd)
    core.add_object(1, status.st_dev, status.st_ino, fd, chunks.flat_size, pages.memory)
    rig = Rig(obj, core, fetcher, backend, path, fd)
    obj.on_settled = rig.settled.append
    try:
        yield rig
    finally:
        fetcher.stop()
        if obj.is_open:
            obj.close(deadline=time.monotonic() + 5)
        os.close(fd)
        os.close(pages_fd)
