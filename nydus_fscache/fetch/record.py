"""Which units are recorded on disk as present: never before their data are durable."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Sequence

from nydus_fscache.cache.presence import ChunkMapFile
from nydus_fscache.fetch.units import Chunks

QUIET_S = 0.5  # since the last arrival: time to sync what came
PERSIST_WITHIN_S = 5.0  # what a power cut may cost of a blob that arrives all the time


class Record:
    """``file``: None when nothing can be recorded.  Thread-safe."""

    def __init__(self, chunks: Chunks, file: ChunkMapFile | None) -> None:
        self._chunks = chunks
        self._file = file
        self._writing = threading.Lock()
        self._lock = threading.Lock()
        self._dirty: set[int] = set()  # present, not recorded yet
        self._dirty_since = math.inf
        self._last_arrival = 0.0

    @property
    def is_kept(self) -> bool:
        return self._file is not None

    def empty(self) -> bool:
        return self._file is None or self._file.empty()

    def has(self, unit: int) -> bool:
        chunk = self._chunks.blob.units[unit]
        return self._file is not None and self._file.has(chunk.first, chunk.count)

    def add(self, units: Sequence[int], now: float) -> None:
        """They are present, and to be recorded; ``now``: 0 when they have waited long already."""
        with self._lock:
            self._dirty.update(units)
            self._last_arrival = now
            self._dirty_since = min(self._dirty_since, now)

    def unrecorded(self) -> list[int]:
        with self._lock:
            return sorted(self._dirty)

    def is_due(self) -> bool:
        """Not while data pour in: a sync holds up the writes of what arrives."""
        now = time.monotonic()
        return now - self._last_arrival >= QUIET_S or now - self._dirty_since >= PERSIST_WITHIN_S

    def write(self, data_fd: int) -> list[int]:
        """Sync the data, then record the units that came; returns these.

        After an ``OSError`` of the record the next call tries again.
        """
        with self._writing:
            if self._file is None:
                return []
            with self._lock:
                dirty, self._dirty = self._dirty, set()
                self._dirty_since = math.inf
            if not dirty:
                return []
            try:
                os.fdatasync(data_fd)
            except OSError:
                # the kernel says so once and takes the pages for written from then on
                self._end()
                raise
            units = self._chunks.blob.units
            try:
                self._file.record((units[u].first, units[u].count) for u in sorted(dirty))
            except OSError:
                self.add(sorted(dirty), time.monotonic())
                raise
            return sorted(dirty)

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> bool:
        """Was everything recorded that came, until now?"""
        with self._writing:
            was_kept = self._file is not None
            self._end()
            return was_kept
