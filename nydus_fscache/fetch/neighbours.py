"""The link is not idle while a reader waits: which neighbours of a miss come meanwhile.

What a round trip costs in bandwidth is free for guesses.  Near a small file lie the files of its
directory, which programs open together when they are of one kind: a program that reads compiled
modules does not read the sources beside them.  Near a part of a program lie its other parts.
Guesses stop while more of them are unread than was read, or than the link brings at once: most of
what a start needs is guessed before it is read.  Pure decisions, no I/O, no locks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain

from nydus_fscache.core.files import kind_of
from nydus_fscache.fetch.extents import UnitTable
from nydus_fscache.fetch.job import KIB, MIB

LEAST = 64 * KIB  # of a guess: for less the link is too near
UNREAD_RATIO = 0.9  # of the bytes that were read may be unread
FORWARD = 0.6  # of a guess behind the miss, the rest before it
MOST = 8 * MIB  # of a guess
MOST_DOUBLED = 7  # times
LARGE = 128 * KIB  # stored bytes of a unit that is not a small file
SKIPPED = 64  # large ones in a row that a guess reaches over
OTHERS = 1024  # files of other kinds in a row, the same
LIBRARIES = 512 * KIB  # of a guess around one: what a program needs of them, it names
PAGES_EACH = 16  # a unit of more pages is read somewhere, not first at its start

_LIBRARY = kind_of(b"x.so")


class Neighbours:
    """Of one blob.  ``may_load``: is the unit missing, and can it be verified?"""

    def __init__(self, units: UnitTable, may_load: Callable[[int], bool]) -> None:
        self._units = units
        self._may_load = may_load
        # of the file that begins with a unit: equal for names with one suffix; empty: not known
        self.kinds: Sequence[int] = ()
        self._unread: dict[int, int] = {}  # units that were guessed: their first page, -1: many
        self._unread_bytes = 0
        self._allowed = MOST  # of unread guesses, when last asked
        self._missed: dict[int, int] = {}  # by the first unit of a program, misses but the first
        self._read_bytes = 0

    # -- how much ------------------------------------------------------------------------------

    def demanded(self, units: Iterable[int]) -> None:
        self._read_bytes += sum(self._units.clen[unit] for unit in units)

    def guessed(self, units: Iterable[int], pages_of: Callable[[int], tuple[int, int]]) -> None:
        """They are on their way, and nobody has asked for them."""
        for unit in units:
            if unit in self._unread:
                continue
            first, end = pages_of(unit)
            self._unread[unit] = first if end - first <= PAGES_EACH else -1
            self._unread_bytes += self._units.clen[unit]

    def was_guessed(self, unit: int) -> bool:
        """And is not known to be read."""
        return unit in self._unread

    def learn(self, asked: memoryview, was_asked: Callable[[int], bool]) -> list[int]:
        """The units that were read since.  ``asked``: the bitmap of pages that were asked for, as
        ``was_asked`` reads it."""
        read = [
            unit
            for unit, page in self._unread.items()
            if (asked[page >> 3] >> (page & 7) & 1 if page >= 0 else was_asked(unit))
        ]
        for unit in read:
            del self._unread[unit]
            self._unread_bytes -= self._units.clen[unit]
            self._read_bytes += self._units.clen[unit]
        return read

    def allow(self, free: int) -> int:
        """Stored bytes that may be guessed now; ``free``: that may be unread however little was
        read."""
        most = max(free, UNREAD_RATIO * self._read_bytes)
        self._allowed = max(0, int(most - self._unread_bytes))
        return self._allowed

    # -- which ---------------------------------------------------------------------------------

    def choose(self, first: int, end: int, size: int, *, is_program: bool) -> list[int]:
        """Units around [first, end), which a reader waits for: ascending behind them, then
        descending before them, of up to ``size`` stored bytes; of a program that is missed again
        and again twice as much each time."""
        if self.is_small_file(first):
            kind = self.kinds[first] if self.kinds else None
            if kind == _LIBRARY:
                size = min(size, LIBRARIES)
            behind = self._small_files(range(end, len(self._units)), size * FORWARD, kind)
            before = self._small_files(range(first - 1, -1, -1), size * (1 - FORWARD), kind)
            return behind + before
        low, high = self._units.file_of(first)
        if not is_program:
            if first != low:
                return []
            # its end, where programs and archives say what they hold
            return self._parts(chain((high - 1,), range(end, high - 1)), size)
        missed = self._missed[low] = min(self._missed.get(low, -1) + 1, MOST_DOUBLED)
        size = min(size << missed, self._allowed, MOST)
        behind = self._parts(range(end, high), size * FORWARD)
        return behind + self._parts(range(first - 1, low - 1, -1), size * (1 - FORWARD))

    def is_small_file(self, unit: int) -> bool:
        is_full = self._units.is_full
        is_tail = unit > 0 and bool(is_full[unit - 1])
        return not is_tail and not is_full[unit] and self._units.clen[unit] < LARGE

    def _small_files(self, units: Sequence[int], size: float, kind: int | None) -> list[int]:
        found: list[int] = []
        skipped = others = 0
        for unit in units:
            if kind is not None and self.kinds[unit] != kind:
                others += 1
                if others > OTHERS:
                    break
                continue
            if not self.is_small_file(unit):
                skipped += 1
                if skipped > SKIPPED:
                    break
                continue
            skipped = others = 0
            if self._may_load(unit):
                size -= self._units.clen[unit]
                if size < 0:
                    break
                found.append(unit)
        return found

    def _parts(self, units: Iterable[int], size: float) -> list[int]:
        found: list[int] = []
        for unit in units:
            size -= self._units.clen[unit]
            if size < 0 and found:
                break
            if self._may_load(unit):
                found.append(unit)
            if size < 0:
                break
        return found
