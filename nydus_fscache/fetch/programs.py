"""Files of a blob that are programs, libraries or scripts, found as their data arrive.

A program that is started needs its interpreter and libraries next; ``found`` is told which, as
soon as enough of the file is here.  Files that came along unasked are looked at when a reader
touches them, by a mark in the C core; not all of those that a reader of everything touches.
Thread-safe.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from nydus_fscache.cache.presence import PAGE
from nydus_fscache.core.core import read_heads
from nydus_fscache.fetch.extents import UnitTable
from nydus_fscache.fetch.units import Chunks
from nydus_fscache.files import OpenFile
from nydus_fscache.image import elf

_MAGICS = (elf.MAGIC, elf.SCRIPT)
_LONGEST = 1 << 16  # units of one file
_AT_ONCE = 48  # touched files that are looked at: a start touches 10 to 40,
_PER_SECOND = 20  # and a reader of everything so many each moment


class Programs:
    """``has``: are all flat bytes [off, off + length) here?  ``mark``: tell when a reader first
    touches this offset.  ``found``: takes what a program needs.  ``other``: takes the unit of an
    expected file that is no program."""

    def __init__(
        self,
        units: UnitTable,
        chunks: Chunks,
        file: OpenFile,
        has: Callable[[int, int], bool],
        mark: Callable[[int], None],
    ) -> None:
        self._units = units
        self._chunks = chunks
        self._file = file
        self._has = has
        self._mark = mark
        self.found: Callable[[elf.Needs], None] | None = None
        self.other: Callable[[Sequence[int]], None] | None = None
        self._lock = threading.Lock()
        self._expected: dict[int, int] = {}  # first unit -> end, of files to be looked at
        self._marked: set[int] = set()  # first units of those that a reader may touch
        self._known: set[int] = set()  # first units of programs
        self._looks = float(_AT_ONCE)
        self._looked_at = time.monotonic()

    def is_program(self, unit: int) -> bool:
        return self._units.file_of(unit)[0] in self._known

    def expect(self, unit: int) -> None:
        """A reader, or a program that needs it, wants the file of the unit."""
        if self.found is None:
            return
        first, end = self._units.file_of(unit)
        with self._lock:
            if first not in self._known and end - first <= _LONGEST:
                self._expected[first] = end

    def arrived(self, first: int, end: int) -> None:
        """Units [first, end) are here."""
        if self.found is None:
            return
        with self._lock:
            expected = [
                (start, stop) for start, stop in self._expected.items()
                if start < end and first < stop
            ]  # fmt: skip
        for start, stop in expected:
            self._look(start, stop)
        is_full, known = self._units.is_full, self._known
        starts = [
            unit for unit in range(first, end)
            if not (unit and is_full[unit - 1]) and unit not in known
        ]  # fmt: skip
        for unit, off in self._programs_among(starts):
            self._marked.add(unit)
            self._mark(off)

    def touched(self, off: int) -> None:
        """A reader crossed the mark of the page at this flat offset: files that begin there."""
        for near in self._chunks.units_of(off, PAGE):
            if near in self._marked and self._chunks.unit_range(near)[0] >= off:
                self._marked.discard(near)
                if self._may_look(time.monotonic()):
                    self.expect(near)
                    self._look(near, self._units.file_of(near)[1])

    def _may_look(self, now: float) -> bool:
        earned = _PER_SECOND * (now - self._looked_at)
        self._looks, self._looked_at = min(_AT_ONCE, self._looks + earned), now
        if self._looks < 1:
            return False
        self._looks -= 1
        return True

    def _programs_among(self, starts: Sequence[int]) -> list[tuple[int, int]]:
        """Of first units, those whose file is a program; with their flat offsets."""
        places = [(unit, self._chunks.unit_range(unit)[0]) for unit in starts]
        try:
            with self._file.use() as fd:
                heads = read_heads(fd, [off for _, off in places])
        except OSError:
            return []
        return [at for i, at in enumerate(places) if heads.startswith(_MAGICS, 8 * i)]

    def _look(self, first: int, end: int) -> None:
        base, limit = self._chunks.unit_range(first)[0], self._chunks.unit_range(end - 1)[1]

        def read_at(off: int, length: int) -> bytes | None:
            length = min(length, limit - base - off)
            if off < 0 or length <= 0:
                return b""
            return self._file.read_at(base + off, length) if self._has(base + off, length) else None

        head = read_at(0, elf.HEAD)
        if head is None:
            return
        if not head.startswith(_MAGICS):
            with self._lock:
                was_expected = self._expected.pop(first, None) is not None
            if was_expected and end == first + 1 and self.other is not None:
                self.other([first])
            return
        self._known.add(first)
        try:
            needs = elf.needs(read_at)
        except elf.NotHereYetError:
            return
        with self._lock:
            is_new = self._expected.pop(first, None) is not None
        if is_new and self.found is not None:
            self.found(needs)
