"""How long reads of a backend took, by their size, in the classes that nydusd's metrics have."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, bisect_right
from typing import Any

# where the next class of sizes begins (bytes), and where a class of times ends (ms)
SIZES = (1 << 10, 4 << 10, 16 << 10, 64 << 10, 128 << 10, 512 << 10, 1 << 20)
TIMES_MS = (1, 20, 50, 100, 500, 1000, 2000)


class ReadTimes:
    """Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._classes: dict[tuple[int, int], int] = {}
        self._total_ms = 0.0
        self._prefetched = self._prefetches = 0
        self._prefetch_ms = self._began = self._ended = 0.0

    def record(self, size: int, seconds: float, *, prefetch: bool) -> None:
        """A read of ``size`` bytes that ended just now."""
        millis = seconds * 1000
        cell = bisect_right(SIZES, size), bisect_left(TIMES_MS, millis)
        with self._lock:
            self._classes[cell] = self._classes.get(cell, 0) + 1
            self._total_ms += millis
            if prefetch:
                self._prefetched += size
                self._prefetches += 1
                self._prefetch_ms += millis
                self._ended = time.time()
                self._began = self._began or self._ended - seconds

    def add(self, other: ReadTimes) -> None:
        with other._lock:
            classes, total_ms = dict(other._classes), other._total_ms
            prefetched = other._prefetched
        with self._lock:
            for cell, count in classes.items():
                self._classes[cell] = self._classes.get(cell, 0) + count
            self._total_ms += total_ms
            self._prefetched += prefetched

    def by_time(self) -> tuple[list[int], float, int]:
        """Reads by class of time, the seconds that all took, and the bytes that prefetch read."""
        counts = [0] * (len(TIMES_MS) + 1)
        with self._lock:
            for (_, class_of_time), count in self._classes.items():
                counts[class_of_time] += count
            return counts, self._total_ms / 1000, self._prefetched

    def document(self) -> dict[str, Any]:
        """``classes``: [class of size, class of time, reads], where there are any.  ``began``,
        ``ended``: of prefetch, seconds since 1970, 0: none."""
        with self._lock:
            return {
                "ms": round(self._total_ms),
                "classes": [[*cell, count] for cell, count in sorted(self._classes.items())],
                "prefetched": self._prefetched,
                "prefetches": self._prefetches,
                "prefetch_ms": round(self._prefetch_ms),
                "began": round(self._began, 3),
                "ended": round(self._ended, 3),
            }
