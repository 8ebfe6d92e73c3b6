"""What to fetch for a miss: which units in one request, and how far ahead.

Pure decisions over unit numbers and stored offsets; no I/O, no locks (the cache
object calls it under its own).  The rules, from the measured baselines:

* a random reader gets the units that it asked for and nothing else, unless they
  are small (tails and small files, of which many lie together), for which a
  round trip costs more than their neighbours;
* a reader that goes on where the last request ended gets a window that grows,
  up to what latency x bandwidth says (``Pace``);
* one request never spans a hole in the stored blob larger than ``GAP``.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

KIB, MIB = 1 << 10, 1 << 20

GAP = 64 * KIB  # stored bytes that are cheaper to read over than to ask anew for
SMALL_UNIT = 32 * KIB  # stored bytes; below this neighbours come along
SMALL_WINDOW = 128 * KIB
FIRST_WINDOW = 512 * KIB
MAX_WINDOW = 8 * MIB
GROWTH = 4  # of the window, each time that a reader goes on
MAX_REQUEST = 8 * MIB
MAX_IN_FLIGHT = 16 * MIB
PREFETCH_REQUEST = MIB
LEAST_PIECE = MIB // 4
LEAST_AMPLIFIED = 128 * KIB
RATE_SAMPLE_S = 0.03
SURELY = 1.25  # times its rate, the link is kept busy
UNKNOWN_RATE = 100.0 * MIB  # of a link, rather too much
BRIDGED_UNITS = 8
STREAMS = 16  # readers followed at once in one blob
SLACK = 2  # units that a reader may skip and still count as sequential
SMALL_SLACK = 16  # the same where units are small


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a configuration says of fetching; None: found out as it runs.

    ``amplify``: flat bytes that a miss brings at least, with what follows.  Of prefetch:
    ``prefetch`` (the policy that "auto" stands for, "": ours), ``threads`` (requests at once),
    ``merging`` (stored bytes of a request), ``bandwidth`` (stored bytes/s, 0: no limit; demand
    takes its share of it and does not wait).
    """

    amplify: int | None = None
    prefetch: str = ""
    threads: int | None = None
    merging: int | None = None
    bandwidth: int = 0


@dataclass(frozen=True, slots=True)
class Extent:
    """Units [unit, end) in stored bytes [off, end_off)."""

    unit: int
    end: int
    off: int
    end_off: int


@dataclass(slots=True)
class _Stream:
    """A reader that goes forward: units up to ``end`` were asked for, ``window`` bytes at last."""

    end: int
    window: int


class Pace:
    """Latency (s) and bandwidth (bytes/s, of all transfers together), estimated as it runs.

    Thread-safe.  The latency follows fast answers quickly and slow ones slowly: a
    first byte that queued behind our own transfers says nothing about the distance.
    """

    def __init__(self) -> None:
        self.tuning = Tuning()
        self.latency_s = 0.02
        self.rate = 50.0 * MIB
        self._lock = threading.Lock()
        self._sampled = False
        self._active = 0  # transfers whose body is arriving
        self._busy_s = 0.0
        self._bytes = 0
        self._since = 0.0

    def transfer(self) -> Transfer:
        return Transfer(self)

    def first_byte(self, seconds: float, now: float) -> None:
        with self._lock:
            weight = 2 if seconds < self.latency_s else 16
            self.latency_s += (seconds - self.latency_s) / weight
            self._pass(now)
            self._active += 1

    def received(self, nbytes: int, now: float) -> None:
        with self._lock:
            self._pass(now)
            self._bytes += nbytes
            if self._busy_s >= RATE_SAMPLE_S:
                sample = self._bytes / self._busy_s
                self._sampled = True
                # up at once: what is in flight is bounded by it, and so is the next sample
                self.rate += (sample - self.rate) / (1 if sample > self.rate else 4)
                self._bytes, self._busy_s = 0, 0.0

    def ended(self, now: float) -> None:
        with self._lock:
            self._pass(now)
            self._active -= 1

    def _pass(self, now: float) -> None:
        if self._active:
            self._busy_s += max(0.0, now - self._since)
        self._since = now

    def window(self) -> int:
        """Bytes that keep the link busy for two round trips."""
        return max(FIRST_WINDOW, min(MAX_WINDOW, int(2 * self.latency_s * self.rate)))

    def in_flight(self) -> int:
        """Bytes of prefetch under way at once."""
        return max(FIRST_WINDOW, min(MAX_IN_FLIGHT, int(2 * self.latency_s * self.rate) + MIB // 4))

    def takes(self, size: int) -> float:
        """Seconds of the link, rather too few."""
        return size / (SURELY * self.rate if self._sampled else UNKNOWN_RATE)

    def piece(self) -> int:
        """Bytes of prefetch in one request: a miss of its last unit waits for all of it."""
        merging = self.tuning.merging
        if merging is None:
            size = max(LEAST_PIECE, min(PREFETCH_REQUEST, self.in_flight() // 2))
        else:  # as nydusd rounds it
            size = PREFETCH_REQUEST if merging <= 1 else 1 << (merging - 1).bit_length()
            size = max(LEAST_PIECE, min(MAX_REQUEST, size))
        rate = self.tuning.bandwidth
        return min(size, max(LEAST_PIECE, rate)) if rate else size


class Transfer:
    """One request, as ``Pace`` sees it; a context manager around it."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._started = time.monotonic()
        self._arriving = False

    def received(self, nbytes: int) -> None:
        now = time.monotonic()
        if not self._arriving:
            self._arriving = True
            self._pace.first_byte(now - self._started, now)
        self._pace.received(nbytes, now)

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._arriving:
            self._pace.ended(time.monotonic())


class Planner:
    """Per blob: merges units into extents and follows its readers."""

    def __init__(
        self, coff: Sequence[int], clen: Sequence[int], ulen: Sequence[int] | None = None
    ) -> None:
        """``ulen``: decoded sizes; a unit of the largest size is part of a large file."""
        self._coff = coff
        self._clen = clen
        full = max(ulen, default=0) if ulen else 0
        self._is_small = bytes(
            size < SMALL_UNIT and not (ulen and SMALL_UNIT <= full <= ulen[unit])
            for unit, size in enumerate(clen)
        )
        self._streams: deque[_Stream] = deque(maxlen=STREAMS)

    def stored(self, unit: int) -> tuple[int, int]:
        return self._coff[unit], self._coff[unit] + self._clen[unit]

    def _joins(self, extent: Extent, unit: int) -> bool:
        off, end = self.stored(unit)
        return (
            extent.end == unit
            and self._coff[unit - 1] <= off <= extent.end_off + GAP
            and end - extent.off <= MAX_REQUEST
        )

    def _grown(self, extent: Extent) -> Extent:
        end_off = max(extent.end_off, self.stored(extent.end)[1])
        return Extent(extent.unit, extent.end + 1, extent.off, end_off)

    def merge(self, units: Sequence[int]) -> list[Extent]:
        """Ascending units as few requests as GAP and MAX_REQUEST allow."""
        extents: list[Extent] = []
        for unit in units:
            if extents and self._joins(extents[-1], unit):
                extents[-1] = self._grown(extents[-1])
            else:
                extents.append(Extent(unit, unit + 1, *self.stored(unit)))
        return extents

    def bridge(self, units: Sequence[int], limit: int) -> list[Extent]:
        """Like ``merge`` for units to prefetch: small units between come along; up to ``limit``."""
        extents: list[Extent] = []
        for unit in units:
            if extents:
                last = extents[-1]
                end = self.stored(unit)[1]
                near = unit - last.end <= BRIDGED_UNITS and (
                    last.off <= self._coff[last.end] <= self._coff[unit] <= last.end_off + GAP
                )
                if near and end - last.off <= limit and self._coff[unit - 1] <= self._coff[unit]:
                    extents[-1] = Extent(last.unit, unit + 1, last.off, max(last.end_off, end))
                    continue
            extents.append(Extent(unit, unit + 1, *self.stored(unit)))
        return extents

    def extend(self, extent: Extent, window: int, free: Callable[[int], bool]) -> Extent:
        """Let neighbours of up to ``window`` stored bytes come along behind the extent."""
        limit = extent.end_off + window
        while (
            extent.end < len(self._coff)
            and free(extent.end)
            and self.stored(extent.end)[1] <= limit
            and self._joins(extent, extent.end)
        ):
            extent = self._grown(extent)
        return extent

    def window(self, first: int, end: int, pace: Pace) -> int:
        """Bytes to read ahead of a reader that wants units [first, end)."""
        stream = self._stream_at(first)
        if stream is None:
            self._streams.append(_Stream(end, 0))
            return SMALL_WINDOW if self._is_small[end - 1] else 0
        stream.window = min(pace.window(), max(FIRST_WINDOW, stream.window * GROWTH))
        return stream.window

    def _stream_at(self, unit: int) -> _Stream | None:
        slack = SMALL_SLACK if self._is_small[min(unit, len(self._is_small) - 1)] else SLACK
        for stream in self._streams:
            if stream.end - slack <= unit <= stream.end + slack:
                return stream
        return None

    def follow(self, first: int, end: int) -> None:
        """Units up to ``end`` are on their way for the reader that was at ``first``."""
        stream = self._stream_at(first) or self._stream_near(first)
        if stream is not None:
            stream.end = max(stream.end, end)

    def ahead(self, unit: int, pace: Pace) -> tuple[int, int] | None:
        """A reader crossed a mark at ``unit``: (first unit, stored bytes) to load next."""
        stream = self._stream_near(unit)
        if stream is None or stream.end >= len(self._coff):
            return None
        left = self._coff[stream.end] - self._coff[unit]
        if left > 2 * max(FIRST_WINDOW, stream.window):
            return None  # another mark of the same window came first
        stream.window = min(pace.window(), max(FIRST_WINDOW, stream.window * GROWTH))
        return stream.end, stream.window

    def _stream_near(self, unit: int) -> _Stream | None:
        """The stream whose window ends soonest behind ``unit``."""
        behind = [s for s in self._streams if s.end > unit]
        return min(behind, key=lambda s: s.end, default=None)
