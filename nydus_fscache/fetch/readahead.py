"""Readers that go forward through a blob, and how far ahead of each to load.

A reader that goes on where its last request ended, and has read what that brought along, gets a
window that grows, up to what latency x bandwidth says (``Pace.window``).  The window ends with
the file until the reader has gone on from file to file.  Pure decisions, no I/O, no locks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from nydus_fscache.fetch.extents import UnitTable, Window
from nydus_fscache.fetch.job import MIB
from nydus_fscache.fetch.pace import FIRST_WINDOW, Pace
from rafs_v6.values import dataclass

READ_THROUGH = 0.75  # of a request's bytes, read before the reader comes to its end
FILES_IN_A_ROW = 3
# a reader that has read so much in a row, and nearly all of it, reads everything
MANY_FILES, MANY_BYTES, NEARLY = 16, MIB // 4, 0.9
SAMPLES = 64  # units that are looked at to see how much was read
GROWTH = 8  # of the window, each time that a reader goes on
STREAMS = 16  # readers followed at once in one blob
SLACK = 2  # units that a reader may skip and still count as sequential

WasAsked = Callable[[int], bool]


@dataclass(slots=True)
class _Stream:
    """A reader that goes forward from ``start``; units up to ``end`` were asked for, those from
    ``newest`` on at last; ``run`` stored bytes and ``files`` that it has come past in a row, of
    which it has read ``read`` bytes; ``window`` bytes at last."""

    start: int
    end: int
    newest: int
    run: int = 0
    read: int = 0
    files: int = 1
    window: int = 0


class Readahead:
    """Of one blob.  ``was_asked``: has a reader asked for the unit?  None: not known, as over
    cachefiles, where only misses are seen."""

    def __init__(self, units: UnitTable, was_asked: WasAsked | None = None) -> None:
        self._units = units
        self.was_asked = was_asked
        self._streams: deque[_Stream] = deque(maxlen=STREAMS)

    def missed(self, first: int, end: int, pace: Pace) -> Window | None:
        """A reader misses units [first, end): its window when it goes on, None when it is a new
        one, which is followed from now on."""
        stream = self._stream_at(first)
        if stream is not None and self._read_through(stream.newest, stream.end):
            self._goes_on(stream, first, pace)
            return Window(0, stream.window, self._window_end(stream, end - 1), sequential=True)
        if stream is not None:
            self._streams.remove(stream)
        self._streams.append(_Stream(first, end, first))
        return None

    def follow(self, first: int, end: int) -> None:
        """Units up to ``end`` are on their way for the reader that was at ``first``."""
        stream = next((s for s in self._streams if s.start == first), None)
        stream = stream or self._stream_near(first)
        if stream is not None:
            stream.end = max(stream.end, end)

    def passed(self, unit: int, pace: Pace) -> tuple[int, Window] | None:
        """A reader crossed a mark at ``unit``: the unit to load next, and what along with it."""
        stream = self._stream_near(unit)
        coff = self._units.coff
        if stream is None or stream.end >= len(coff):
            return None
        if coff[stream.end] - coff[unit] > 2 * max(FIRST_WINDOW, stream.window):
            return None  # another mark of the same window came first
        # directories are read in another order than they are stored in: only the last counts
        first = stream.newest if unit >= stream.newest else stream.start
        if not self._read_through(first, unit + 1):
            return None
        self._goes_on(stream, unit, pace)
        end = self._window_end(stream, unit)
        return (stream.end, Window(0, stream.window, end)) if stream.end < end else None

    def reads_all(self, unit: int) -> bool:
        """Is the unit in the window of a reader that reads one file after the other?"""
        return any(
            s.start <= unit < s.end
            and s.files >= MANY_FILES
            and MANY_BYTES <= s.run <= s.read / NEARLY
            for s in self._streams
        )

    def _read_through(self, first: int, end: int) -> bool:
        if self.was_asked is None:
            return True
        clen = self._units.clen
        units = range(first, end, max(1, (end - first) // SAMPLES))
        read = sum(clen[u] for u in units if self.was_asked(u))
        return read >= READ_THROUGH * sum(clen[u] for u in units)

    def _goes_on(self, stream: _Stream, at: int, pace: Pace) -> None:
        """Its reader has read what it had up to unit ``at``: a larger window is due."""
        clen, passed = self._units.clen, range(stream.start, min(at, stream.end))
        stream.run += sum(clen[u] for u in passed)
        if self.was_asked is not None:
            stream.read += sum(clen[u] for u in passed if self.was_asked(u))
        stream.files += sum(not self._units.is_full[u] for u in passed)
        stream.window = min(pace.window(), max(stream.window, GROWTH * stream.run))
        stream.start = at
        stream.newest = stream.end
        stream.end = max(stream.end, at + 1)

    def _window_end(self, stream: _Stream, unit: int) -> int:
        """The first unit that is not to come along with ``unit`` for a reader that goes on."""
        if stream.files >= FILES_IN_A_ROW:
            return len(self._units)
        while unit < len(self._units) and self._units.is_full[unit]:
            unit += 1
        return unit + 1

    def _stream_at(self, unit: int) -> _Stream | None:
        return next((s for s in self._streams if s.end <= unit <= s.end + SLACK), None)

    def _stream_near(self, unit: int) -> _Stream | None:
        """The stream whose window ends soonest behind ``unit``."""
        behind = [s for s in self._streams if s.start <= unit < s.end]
        return min(behind, key=lambda s: s.end, default=None)
