"""What to fetch for a miss: which units in one request, and how far ahead.

Pure decisions over unit numbers and stored offsets; no I/O, no locks (the cache
object calls it under its own).  The rules, from the measured baselines:

* a random reader gets the units that it asked for and nothing else, unless they
  are small (tails and small files, of which many lie together), for which a
  round trip costs more than their neighbours;
* a reader that goes on where the last request ended gets a window that doubles,
  up to what latency x bandwidth says (``Pace``);
* one request never spans a hole in the stored blob larger than ``GAP``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

KIB, MIB = 1 << 10, 1 << 20

GAP = 32 * KIB  # stored bytes that are cheaper to read over than to ask anew for
SMALL_UNIT = 32 * KIB  # stored bytes; below this neighbours come along
SMALL_WINDOW = 128 * KIB
FIRST_WINDOW = 512 * KIB
MAX_WINDOW = 8 * MIB
MAX_REQUEST = 8 * MIB
STREAMS = 16  # readers followed at once in one blob
SLACK = 64  # units that a reader may skip and still count as sequential


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
    """Latency (s) and bandwidth (bytes/s) of a backend, estimated as it runs."""

    def __init__(self) -> None:
        self.latency_s = 0.02
        self.rate = 50.0 * MIB

    def first_byte(self, seconds: float) -> None:
        self.latency_s += (seconds - self.latency_s) / 4

    def transferred(self, nbytes: int, seconds: float) -> None:
        if nbytes >= 128 * KIB and seconds > 0:
            self.rate += (nbytes / seconds - self.rate) / 4

    def window(self) -> int:
        """Bytes that keep the link busy for two round trips."""
        return max(FIRST_WINDOW, min(MAX_WINDOW, int(2 * self.latency_s * self.rate)))


class Planner:
    """Per blob: merges units into extents and follows its readers."""

    def __init__(self, coff: Sequence[int], clen: Sequence[int]) -> None:
        self._coff = coff
        self._clen = clen
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
            small = self._clen[end - 1] < SMALL_UNIT
            self._streams.append(_Stream(end, 0))
            return SMALL_WINDOW if small else 0
        stream.window = min(pace.window(), max(FIRST_WINDOW, stream.window * 2))
        return stream.window

    def _stream_at(self, unit: int) -> _Stream | None:
        for stream in self._streams:
            if stream.end - SLACK <= unit <= stream.end + SLACK // 8:
                return stream
        return None

    def follow(self, first: int, end: int) -> None:
        """Units up to ``end`` are on their way for the reader that was at ``first``."""
        stream = self._stream_at(first) or _Stream(end, 0)
        stream.end = max(stream.end, end)

    def ahead(self, unit: int, pace: Pace) -> tuple[int, int] | None:
        """A reader crossed a mark at ``unit``: (first unit, stored bytes) to load next."""
        stream = self._stream_near(unit)
        if stream is None or stream.end >= len(self._coff):
            return None
        stream.window = min(pace.window(), max(FIRST_WINDOW, stream.window * 2))
        return stream.end, stream.window

    def _stream_near(self, unit: int) -> _Stream | None:
        """The stream whose window ends soonest behind ``unit``."""
        behind = [s for s in self._streams if s.end > unit]
        return min(behind, key=lambda s: s.end, default=None)
