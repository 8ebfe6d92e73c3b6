"""The neighbours of a miss: which units come along with those that a reader waits for.

Pure decisions over unit numbers and stored offsets; no I/O, no locks (the cache
object calls it under its own).  The rules, from the measured baselines:

* a random reader gets the units that it asked for and nothing else, unless they
  are small (tails and small files, of which many lie together), for which a
  round trip costs more than their neighbours: as many as those before them that
  were brought along were read;
* a file of a few units comes whole: programs and libraries are read all over;
* a reader that goes forward gets a growing window (readahead.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from nydus_fscache.fetch.extents import UnitTable, Window
from nydus_fscache.fetch.job import KIB, MIB
from nydus_fscache.fetch.pace import Pace
from nydus_fscache.fetch.readahead import Readahead, WasAsked

NEIGHBOURHOOD = 128 * KIB  # of a small unit, to both sides
KNOWN = 16 * KIB  # of which so much must be here to tell anything from it
GUESS, GOOD_GUESS, BAD_GUESS = 48 * KIB, 192 * KIB, 16 * KIB  # stored bytes behind a small unit
GUESS_BEFORE = 4  # a part of that many of it before the unit
WHOLE_FILE = 4 * MIB  # stored; files up to it come whole
GUESSES = 16  # whole files that are remembered, to see whether they were read


class Planner:
    """Per blob: guesses what is read next."""

    def __init__(
        self,
        units: UnitTable,
        was_asked: WasAsked | None = None,
        is_here: Callable[[int], bool] = lambda unit: False,
    ) -> None:
        """``was_asked``: as of ``Readahead``.  ``is_here``: is the unit here, or on its way?"""
        self._units = units
        self._was_asked = was_asked
        self._is_here = is_here
        self.readahead = Readahead(units, was_asked)
        self._whole: deque[tuple[int, int]] = deque(maxlen=GUESSES)

    def learn_from(self, was_asked: WasAsked | None) -> None:
        self._was_asked = self.readahead.was_asked = was_asked

    def window(self, first: int, end: int, pace: Pace, *, aggressive: bool = False) -> Window:
        """How far around units [first, end), which a reader misses, its request is to go.

        ``aggressive``: all of the blob will be loaded in any case.
        """
        window = self.readahead.missed(first, end, pace)
        if window is not None:
            return window
        if not self._units.is_small(end - 1):
            return Window(0, 0, end)
        guess = GOOD_GUESS if aggressive else self._guess(first)
        return Window(guess // GUESS_BEFORE, guess, len(self._units), small=True)

    def _guess(self, unit: int) -> int:
        """Bytes to bring along behind a small unit, by what came of those around it."""
        if self._was_asked is None:
            return GUESS
        coff, clen = self._units.coff, self._units.clen
        here = read = 0
        for step in (1, -1):
            at = unit + step
            while 0 <= at < len(coff) and abs(coff[at] - coff[unit]) <= NEIGHBOURHOOD:
                if self._is_here(at) and not self._units.is_full[at]:
                    here += clen[at]
                    read += clen[at] * self._was_asked(at)
                at += step
        if here < KNOWN:
            return GUESS
        return GOOD_GUESS if 2 * read >= here else GUESS if 4 * read >= here else BAD_GUESS

    def file(self, unit: int) -> tuple[int, int] | None:
        """Units [first, end) of the file of several units that the unit is of, when that is to
        come whole; None for any other."""
        first, end = self._units.file_of(unit)
        coff = self._units.coff
        if end - first < 2 or not 0 < self._units.stored(end - 1)[1] - coff[first] <= WHOLE_FILE:
            return None
        if (first, end) in self._whole or self._unread() > WHOLE_FILE:
            return None
        if not all(0 <= coff[u] - coff[first] <= WHOLE_FILE for u in range(first, end)):
            return None
        self._whole.append((first, end))
        return first, end

    def _unread(self) -> int:
        """Bytes of the last files that came whole and were not read, less those that were."""
        if self._was_asked is None:
            return 0
        clen = self._units.clen
        units = [unit for first, end in self._whole for unit in range(first, end)]
        return sum(clen[u] * (-1 if self._was_asked(u) else 1) for u in units)
