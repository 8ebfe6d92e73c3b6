"""What comes besides the units that a reader waits for: neighbours, the rest of its file, the
window of a reader that goes forward, the files of a program.

Nothing of it holds up a demand read: demand is queued first, and overtakes it.  Decisions are
made under the lock of the cache object; requests are queued outside of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from nydus_fscache.cache.presence import PageMap
from nydus_fscache.fetch.extents import UnitTable, Window
from nydus_fscache.fetch.failures import Failures
from nydus_fscache.fetch.job import KIB, Extent, Job, Priority, Target
from nydus_fscache.fetch.neighbours import LEAST, Neighbours
from nydus_fscache.fetch.pace import FIRST_WINDOW, Pace
from nydus_fscache.fetch.plan import Planner
from nydus_fscache.fetch.programs import Programs
from nydus_fscache.fetch.queue import Fetcher
from nydus_fscache.fetch.units import Chunks, State, UnitStates

MARKS = 4  # read-ahead marks in the first half of a window
LEAST_AMPLIFIED = 128 * KIB


class Loader:
    """Of the blob of ``target``.  ``changed``: the lock of ``states``.  ``tell_when_touched``:
    call ``passed`` when a reader first touches this flat offset."""

    def __init__(
        self,
        target: Target,
        chunks: Chunks,
        table: UnitTable,
        states: UnitStates,
        failures: Failures,
        programs: Programs,
        fetcher: Fetcher,
        changed: threading.Condition,
        tell_when_touched: Callable[[int], None],
    ) -> None:
        self._target = target
        self._chunks = chunks
        self._table = table
        self._states = states
        self._failures = failures
        self._programs = programs
        self._fetcher = fetcher
        self._changed = changed
        self._tell_when_touched = tell_when_touched
        # takes small files that were guessed and that somebody has read
        self.was_read: Callable[[Sequence[int]], None] | None = None
        self._asked: PageMap | None = None
        self._awaits_kinds = False
        self._waiting: list[tuple[list[int], int, int]] = []  # for these
        self._neighbours = Neighbours(table, self._may_read_ahead)
        self._planner = Planner(table, is_here=lambda unit: states[unit] != State.MISSING)

    def learn_from(self, asked: PageMap | None) -> None:
        """The map of the pages that readers ask for; None: from now on there is none."""
        self._asked = asked
        self._planner.learn_from(self._was_asked if asked is not None else None)

    def expect_kinds(self) -> None:
        """``know_kinds`` will follow: until then nothing is guessed."""
        self._awaits_kinds = True

    def know_kinds(self, kinds: Sequence[int]) -> None:
        """By unit, as ``Neighbours.kinds``; empty: they are not known after all."""
        with self._changed:
            if kinds:
                self._table.know_starts(kinds)
                self._neighbours.kinds = kinds
            self._awaits_kinds = False
            waiting, self._waiting = self._waiting, []
        for wanted, end, room in waiting:
            self._load_neighbours(wanted, end, room)

    def demand(self, off: int, wanted: list[int]) -> None:
        """A reader waits for the units ``wanted``, of a request at ``off``."""
        backend = self._target.source.backend
        aggressive = self._fetcher.loads_everything(backend)
        spare, pace = self._fetcher.spare(backend), self._fetcher.pace(backend)
        with self._changed:
            wanted = [u for u in wanted if self._states[u] == State.MISSING]
            if not wanted:
                return
            extents = self._table.merge(wanted)
            asked = extents[-1].end
            window = self._planner.window(wanted[0], wanted[-1] + 1, pace, aggressive=aggressive)
            room, read = 0, self._learn()
            if pace.tuning.amplify is not None:
                along = self._amplified(off, pace.tuning.amplify, extents[-1])
                if along > window.behind:
                    window = Window(0, along, self._chunks.nunits, sequential=window.sequential)
            elif not window.sequential:
                room = self._room_for_guesses(spare, pace, aggressive=aggressive)
                if room:
                    window = Window(0, 0, asked)
            if len(extents) > 1:  # what lies before the last may be another's
                window = replace(window, before=0)
            extents[-1] = self._table.extend(extents[-1], window, self._may_read_ahead)
            end = extents[-1].end
            self._states.take(extents, State.DEMANDED)
            self._neighbours.demanded(wanted)
            self._planner.readahead.follow(wanted[0], end)
        for extent in extents:
            self._fetcher.submit(Job(self._target, extent, Priority.DEMAND))
        self._programs.expect(wanted[0])
        self._load_neighbours(wanted, end, room)
        self._tell_read(read)
        if window.sequential and window.behind >= FIRST_WINDOW // 2:
            # a reader that goes on: one window more is under way while it reads this one
            self._load_ahead(wanted[0], end, window)

    def joined(self, unit: int) -> None:
        """A reader waits for a unit that was asked for ahead of it: the link may have time."""
        backend = self._target.source.backend
        spare, pace = self._fetcher.spare(backend), self._fetcher.pace(backend)
        if self._fetcher.is_prefetching(backend) or pace.tuning.amplify is not None:
            return
        with self._changed:
            read = self._learn()
            room = self._room_for_guesses(spare, pace, aggressive=False)
        if room:
            self._load_neighbours([unit], unit + 1, room)
        self._tell_read(read)

    def _learn(self) -> list[int]:
        """Which guesses were read: small files."""
        if self._asked is None:
            return []
        with memoryview(self._asked.memory) as asked:
            read = self._neighbours.learn(asked, self._was_asked)
        return [unit for unit in read if self._neighbours.is_small_file(unit)]

    def _tell_read(self, units: Sequence[int]) -> None:
        """Without the lock: the image is searched for what they need."""
        if units and self.was_read is not None:
            self.was_read(units)

    def _room_for_guesses(self, spare: int, pace: Pace, *, aggressive: bool) -> int:
        """Stored bytes; 0: the link is too near, or the guesses before were not good."""
        if not aggressive:  # all of it comes in any case
            spare = min(spare, self._neighbours.allow(pace.may_waste(id(self))))
        return spare if spare >= LEAST else 0

    def _load_neighbours(self, wanted: list[int], end: int, room: int) -> None:
        """While a reader waits for ``wanted``, which with their request end before unit ``end``."""
        with self._changed:
            if self._awaits_kinds:
                self._waiting.append((wanted, end, room))
                return
            extents = self._rest_of_file(wanted[0])
            ahead, told = end, list[int]()
            if room and not extents:
                is_program = self._programs.is_program(wanted[0])
                units = self._neighbours.choose(wanted[0], end, room, is_program=is_program)
                behind = self._table.merge([u for u in units if u >= end])
                before = self._table.merge([u for u in reversed(units) if u < end])
                extents += behind + before
                while any(e.unit <= ahead < e.end for e in behind):
                    ahead += 1
                self._planner.readahead.follow(wanted[0], ahead)
                if self._neighbours.is_small_file(wanted[0]):
                    told = units
        self._submit_ahead(extents)
        if ahead > end:
            self._mark(end, ahead)
        for unit in told:
            self._tell_when_touched(self._chunks.unit_range(unit)[0])

    def _was_asked(self, unit: int) -> bool:
        return self._asked is not None and self._asked.any_set(*self._states.pages(unit))

    def _submit_ahead(self, extents: Sequence[Extent]) -> None:
        with self._changed:
            for extent in extents:
                units = range(extent.unit, extent.end)
                missing = [u for u in units if self._states[u] != State.PRESENT]
                self._neighbours.guessed(missing, self._states.pages)
        for extent in extents:
            self._fetcher.submit(Job(self._target, extent, Priority.AHEAD))

    def load_program(self, units: Sequence[int]) -> None:
        """A program is about to need these units of one file."""
        self._programs.expect(units[0])
        with self._changed:
            wanted = [u for u in units if self._may_read_ahead(u)]
            extents = self._table.merge(wanted[:1]) + self._table.merge(wanted[1:])
        self._submit_ahead(extents)
        self._programs.arrived(units[0], units[0] + 1)  # it may be here already

    def load_named(self, units: Sequence[int]) -> None:
        """Files of a unit each, likely ones first: as many as may be unread."""
        pace = self._fetcher.pace(self._target.source.backend)
        wanted = []
        with self._changed:
            read = self._learn()
            room = self._neighbours.allow(pace.may_waste(id(self)))
            for unit in units:
                if self._may_read_ahead(unit):
                    room -= self._table.clen[unit]
                    if room < 0:
                        break
                    wanted.append(unit)
            extents = self._table.merge(sorted(wanted))
        for unit in units:
            self._programs.expect(unit)
        self._submit_ahead(extents)
        for unit in units:
            if self._states[unit] == State.PRESENT:  # it came meanwhile
                self._programs.arrived(unit, unit + 1)
        self._tell_read(read)

    def _rest_of_file(self, unit: int) -> list[Extent]:
        """Requests for the file that ``unit`` is of, when it is to come whole.  Its end first: the
        loader of programs and libraries looks there next."""
        whole = self._planner.file(unit)
        if whole is None:
            return []
        left = [u for u in range(*whole) if self._may_read_ahead(u)]
        return self._table.merge(left[-1:]) + self._table.merge(left[:-1])

    def _amplified(self, off: int, size: int, extent: Extent) -> int:
        """Stored bytes behind ``extent`` that a request for ``size`` flat bytes would hold."""
        size = min(max(size, LEAST_AMPLIFIED), self._chunks.flat_size - off)
        units = self._chunks.units_of(off, size)
        return self._table.stored(units.stop - 1)[1] - extent.end_off if units else 0

    def passed(self, off: int) -> None:
        """A reader crossed the mark at ``off``: load what follows, behind all demand."""
        unit = self._chunks.units_of(off, 1).start
        with self._changed:
            pace = self._fetcher.pace(self._target.source.backend)
            following = self._planner.readahead.passed(unit, pace)
            reads_all = self._planner.readahead.reads_all(unit)
        if not reads_all:  # else the files of programs come in their turn, in fewer requests
            self._programs.touched(off)
            if self._neighbours.was_guessed(unit):
                self._tell_read([unit])
        if following is not None:
            self._load_ahead(unit, *following)

    def _load_ahead(self, reader: int, first: int, window: Window) -> None:
        """Load from unit ``first`` on, for the reader that is at ``reader``."""
        with self._changed:
            units, end = self._table.following(
                first, window, self._may_read_ahead,
                everything=self._planner.readahead.reads_all(reader),
            )  # fmt: skip
            self._planner.readahead.follow(reader, end)
            extents = self._table.merge(units)
        for extent in extents:
            self._fetcher.submit(Job(self._target, extent, Priority.AHEAD))
        if units:
            self._mark(units[0], end)

    def _mark(self, first: int, end: int) -> None:
        """When the reader comes there, the next window is due; it may skip some files."""
        for part in range(MARKS):
            unit = first + (end - first) * part // (2 * MARKS)
            self._tell_when_touched(self._chunks.unit_range(unit)[0])

    def _may_read_ahead(self, unit: int) -> bool:
        """Neighbours that nobody asked for are taken only where they can be verified."""
        if self._states[unit] != State.MISSING:
            return False
        if self._failures.is_doubtful(unit, time.monotonic()):
            return False
        if self._chunks.digest_source == "none":
            return True
        blob = self._chunks.blob
        return bool(blob.chunks[blob.units[unit].first].flags)
