"""Which units are recorded on disk as present: never before their data are durable.

A failed sync is told once, and afterwards the kernel takes the pages for written, drops them
when it needs memory, and reads from disk what is there instead.  So all units that were written
since the last sync that succeeded count as lost then, with those whose write is under way.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Sequence

from nydus_fscache.cache.presence import ChunkMapFile
from nydus_fscache.fetch.units import Chunks

CAREFUL_S = 60.0  # after a failed sync: each unit is synced when it comes
QUIET_S = 0.5  # since the last arrival: time to sync what came
PERSIST_WITHIN_S = 5.0  # what a power cut may cost of a blob that arrives all the time


class LostWritesError(OSError):
    """The data of ``units`` may not be on the disk."""

    def __init__(self, error: OSError, units: list[int]) -> None:
        super().__init__(error.errno, error.strerror)
        self.units = units


class Record:
    """``file``: None when nothing can be recorded, which is synced all the same.  Thread-safe."""

    def __init__(self, chunks: Chunks, file: ChunkMapFile | None) -> None:
        self._chunks = chunks
        self._file = file
        self._writing = threading.Lock()
        self._closed = False
        self._lock = threading.Lock()
        self._dirty: set[int] = set()  # present, not recorded yet
        self._dirty_since = math.inf
        self._last_arrival = 0.0
        self._last_failure = -math.inf
        self.failures = 0  # of syncs

    @property
    def is_kept(self) -> bool:
        return self._file is not None

    def empty(self) -> bool:
        return self._file is None or self._file.empty()

    def has(self, unit: int) -> bool:
        chunk = self._chunks.blob.units[unit]
        return self._file is not None and self._file.has(chunk.first, chunk.count)

    def add(self, units: Sequence[int], now: float, failures: int) -> bool:
        """They are present, and to be recorded; ``now``: 0 when they have waited long already.

        ``failures``: as it was before they were written.  False: a sync has failed since, which
        may have been theirs, so they are lost.
        """
        with self._lock:
            if failures != self.failures:
                return False
            self._dirty.update(units)
            self._last_arrival = now
            self._dirty_since = min(self._dirty_since, now)
            return True

    def unrecorded(self) -> list[int]:
        with self._lock:
            return sorted(self._dirty)

    def is_due(self) -> bool:
        """Not while data pour in: a sync holds up the writes of what arrives."""
        now = time.monotonic()
        return now - self._last_arrival >= QUIET_S or now - self._dirty_since >= PERSIST_WITHIN_S

    def write(self, data_fd: int) -> list[int]:
        """Sync the data, then record the units that came; returns these.

        ``LostWritesError``: the sync failed.  After an ``OSError`` of the record the next call
        tries again.
        """
        with self._writing:
            if self._closed:
                return []
            with self._lock:
                dirty, self._dirty = self._dirty, set()
                self._dirty_since = math.inf
            if not dirty:
                return []
            try:
                os.fdatasync(data_fd)
            except OSError as e:
                with self._lock:
                    self.failures += 1
                    self._last_failure = time.monotonic()
                    lost, self._dirty = dirty | self._dirty, set()
                    self._dirty_since = math.inf
                raise LostWritesError(e, sorted(lost)) from e
            units = self._chunks.blob.units
            if self._file is None:
                return []
            try:
                self._file.record((units[u].first, units[u].count) for u in sorted(dirty))
            except OSError:
                self.add(sorted(dirty), time.monotonic(), self.failures)
                raise
            return sorted(dirty)

    def is_careful(self) -> bool:
        """A sync failed not long ago: each unit is to be synced when it comes."""
        return time.monotonic() - self._last_failure < CAREFUL_S

    def close(self) -> bool:
        """Nothing is synced or recorded from now on.  Was there a record?"""
        with self._writing:
            self._closed = True
            file, self._file = self._file, None
            if file is not None:
                file.close()
            return file is not None
