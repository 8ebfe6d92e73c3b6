"""What to fetch for a miss: which units in one request, and how far ahead.

Pure decisions over unit numbers and stored offsets; no I/O, no locks (the cache
object calls it under its own).  The rules, from the measured baselines:

* a random reader gets the units that it asked for and nothing else, unless they
  are small (tails and small files, of which many lie together), for which a
  round trip costs more than their neighbours: as many as those before them that
  were brought along were read;
* a file of a few units comes whole: programs and libraries are read all over;
* a reader that goes on where the last request ended, and has read what that brought
  along, gets a window that grows, up to what latency x bandwidth says (``Pace``); it
  ends with the file until the reader has gone on from file to file;
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
NEIGHBOURHOOD = 128 * KIB  # of a small unit, to both sides
KNOWN = 16 * KIB  # of which so much must be here to tell anything from it
GUESS, GOOD_GUESS, BAD_GUESS = 48 * KIB, 192 * KIB, 16 * KIB  # stored bytes behind a small unit
GUESS_BEFORE = 4  # a part of that many of it before the unit
WHOLE_FILE = 4 * MIB  # stored; files up to it come whole
READ_THROUGH = 0.75  # of what a request brought, read before the reader comes to its end
FILES_IN_A_ROW = 3
SAMPLES = 64  # units that are looked at to see how much was read
FIRST_WINDOW = 512 * KIB
MAX_WINDOW = 8 * MIB
GROWTH = 8  # of the window, each time that a reader goes on
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
GUESSES = 16  # whole files that are remembered, to see whether they were read


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


@dataclass(frozen=True, slots=True)
class Reach:
    """What may come along with a miss: stored bytes ``before`` and ``behind`` it, no unit from
    ``end`` on, only small ones when ``small``.  ``sequential``: for a reader that goes on."""

    before: int
    behind: int
    end: int
    small: bool = False
    sequential: bool = False


@dataclass(slots=True)
class _Stream:
    """A reader that goes forward from ``start``; units up to ``end`` were asked for, those from
    ``newest`` on at last; ``run`` stored bytes and ``files`` that it has read in a row;
    ``window`` bytes at last."""

    start: int
    end: int
    newest: int
    run: int = 0
    files: int = 1
    window: int = 0


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
    """Per blob: merges units into extents, guesses what is read next and follows readers."""

    def __init__(
        self,
        coff: Sequence[int],
        clen: Sequence[int],
        ulen: Sequence[int] | None = None,
        was_asked: Callable[[int], bool] | None = None,
        is_here: Callable[[int], bool] = lambda unit: False,
    ) -> None:
        """``ulen``: decoded sizes; a unit of the largest size is part of a large file, which ends
        with the first that is smaller.  ``was_asked``: has a reader asked for the unit?  None:
        not known, as over cachefiles, where only misses are seen.  ``is_here``: or on its way."""
        self._coff = coff
        self._clen = clen
        self.was_asked = was_asked
        self._is_here = is_here
        full = max(ulen, default=0) if ulen else 0
        self._is_full = bytes(SMALL_UNIT <= full == size for size in ulen or ())
        self._is_full += bytes(len(coff) - len(self._is_full))
        self._streams: deque[_Stream] = deque(maxlen=STREAMS)
        self._whole: deque[tuple[int, int]] = deque(maxlen=GUESSES)

    def stored(self, unit: int) -> tuple[int, int]:
        return self._coff[unit], self._coff[unit] + self._clen[unit]

    def _is_small(self, unit: int) -> bool:
        return self._clen[unit] < SMALL_UNIT and not self._is_full[unit]

    # -- extents -------------------------------------------------------------------------------

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

    def extend(self, extent: Extent, reach: Reach, free: Callable[[int], bool]) -> Extent:
        """Let neighbours within ``reach`` come along, those behind the extent first."""

        def may_come(unit: int) -> bool:
            return free(unit) and not (reach.small and not self._is_small(unit))

        limit = extent.end_off + reach.behind
        while (
            extent.end < min(len(self._coff), reach.end)
            and self.stored(extent.end)[1] <= limit
            and may_come(extent.end)
            and self._joins(extent, extent.end)
        ):
            extent = self._grown(extent)
        first = max(0, extent.off - reach.before)
        while extent.unit and may_come(extent.unit - 1):
            off, end = self.stored(extent.unit - 1)
            if not first <= off < extent.off <= end + GAP or extent.end_off - off > MAX_REQUEST:
                break
            extent = Extent(extent.unit - 1, extent.end, off, max(end, extent.end_off))
        return extent

    # -- guesses -------------------------------------------------------------------------------

    def reach(self, first: int, end: int, pace: Pace, *, bold: bool = False) -> Reach:
        """How far around units [first, end), which a reader misses, its request is to go.

        ``bold``: all of the blob will be loaded in any case.
        """
        stream = self._stream_at(first)
        if stream is not None and self._read_through(stream.newest, stream.end):
            self._goes_on(stream, first, pace)
            return Reach(0, stream.window, self._window_end(stream, end - 1), sequential=True)
        if stream is not None:
            self._streams.remove(stream)
        self._streams.append(_Stream(first, end, first))
        if not self._is_small(end - 1):
            return Reach(0, 0, end)
        guess = GOOD_GUESS if bold else self._guess(first)
        return Reach(guess // GUESS_BEFORE, guess, len(self._coff), small=True)

    def _guess(self, unit: int) -> int:
        """Bytes to bring along behind a small unit, by what came of those around it."""
        if self.was_asked is None:
            return GUESS
        here = read = 0
        for step in (1, -1):
            at = unit + step
            while 0 <= at < len(self._coff) and (
                abs(self._coff[at] - self._coff[unit]) <= NEIGHBOURHOOD
            ):
                if self._is_here(at) and not self._is_full[at]:
                    here += self._clen[at]
                    read += self._clen[at] * self.was_asked(at)
                at += step
        if here < KNOWN:
            return GUESS
        return GOOD_GUESS if 2 * read >= here else GUESS if 4 * read >= here else BAD_GUESS

    def file(self, unit: int) -> tuple[int, int] | None:
        """Units [first, end) of the file of several units that the unit is of, when that is to
        come whole; None for any other."""
        first, end = unit, unit
        while first and self._is_full[first - 1]:
            first -= 1
            if not 0 <= self._coff[unit] - self._coff[first] <= WHOLE_FILE:
                return None
        while end < len(self._coff) and self._is_full[end]:
            end += 1
            if not 0 <= self._coff[end - 1] - self._coff[first] <= WHOLE_FILE:
                return None
        end = min(end + 1, len(self._coff))
        if end - first < 2 or not 0 < self.stored(end - 1)[1] - self._coff[first] <= WHOLE_FILE:
            return None
        if (first, end) in self._whole or self._unread() > WHOLE_FILE:
            return None
        self._whole.append((first, end))
        return first, end

    def _unread(self) -> int:
        """Bytes of the last files that came whole and were not read, less those that were."""
        if self.was_asked is None:
            return 0
        units = [unit for first, end in self._whole for unit in range(first, end)]
        return sum(self._clen[u] * (-1 if self.was_asked(u) else 1) for u in units)

    # -- readers that go forward ---------------------------------------------------------------

    def _read_through(self, first: int, end: int) -> bool:
        if self.was_asked is None:
            return True
        units = range(first, end, max(1, (end - first) // SAMPLES))
        read = sum(self._clen[u] for u in units if self.was_asked(u))
        return read >= READ_THROUGH * sum(self._clen[u] for u in units)

    def _goes_on(self, stream: _Stream, at: int, pace: Pace) -> None:
        """Its reader has read what it had up to unit ``at``: a larger window is due."""
        read = range(stream.start, min(at, stream.end))
        stream.run += sum(self._clen[u] for u in read)
        stream.files += sum(not self._is_full[u] for u in read)
        stream.window = min(pace.window(), max(stream.window, GROWTH * stream.run))
        stream.start = at
        stream.newest = stream.end
        stream.end = max(stream.end, at + 1)

    def _window_end(self, stream: _Stream, unit: int) -> int:
        """The first unit that is not to come along with ``unit`` for a reader that goes on."""
        if stream.files >= FILES_IN_A_ROW:
            return len(self._coff)
        while unit < len(self._coff) and self._is_full[unit]:
            unit += 1
        return unit + 1

    def _stream_at(self, unit: int) -> _Stream | None:
        return next((s for s in self._streams if s.end <= unit <= s.end + SLACK), None)

    def follow(self, first: int, end: int) -> None:
        """Units up to ``end`` are on their way for the reader that was at ``first``."""
        stream = next((s for s in self._streams if s.start == first), None)
        stream = stream or self._stream_near(first)
        if stream is not None:
            stream.end = max(stream.end, end)

    def ahead(self, unit: int, pace: Pace) -> tuple[int, Reach] | None:
        """A reader crossed a mark at ``unit``: the unit to load next, and what along with it."""
        stream = self._stream_near(unit)
        if stream is None or stream.end >= len(self._coff):
            return None
        left = self._coff[stream.end] - self._coff[unit]
        if left > 2 * max(FIRST_WINDOW, stream.window):
            return None  # another mark of the same window came first
        # directories are read in another order than they are stored in: only the last counts
        first = stream.newest if unit >= stream.newest else stream.start
        if not self._read_through(first, unit + 1):
            return None
        self._goes_on(stream, unit, pace)
        end = self._window_end(stream, unit)
        return (stream.end, Reach(0, stream.window, end)) if stream.end < end else None

    def _stream_near(self, unit: int) -> _Stream | None:
        """The stream whose window ends soonest behind ``unit``."""
        behind = [s for s in self._streams if s.start <= unit < s.end]
        return min(behind, key=lambda s: s.end, default=None)
