"""One blob's cache file on this node, whatever number of images use it.

Guarantees: a unit is fetched by at most one job at a time; a unit counts as
present only after the C core has verified and written it; a failed fetch frees
its units at once, so that the next reader tries again.  Answers to the kernel
are the C core's: here is only decided what to fetch.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from nydus_fscache.backend.base import Backend
from nydus_fscache.cache.presence import PAGE, ChunkMapFile, PageMap
from nydus_fscache.cache.reuse import Copies, copy_chunk, holds_chunk, read_chunk
from nydus_fscache.core.core import Core
from nydus_fscache.core.units import unit_columns
from nydus_fscache.fetch.plan import FIRST_WINDOW, LEAST_AMPLIFIED, Extent, Planner, Reach
from nydus_fscache.fetch.queue import Fetcher, Job, Priority

log = logging.getLogger("cache")

MARKS = 4  # read-ahead marks in the first half of a window

QUIET_S = 0.5  # since the last arrival: time to sync what came
PERSIST_WITHIN_S = 5.0  # what a power cut may cost of a blob that arrives all the time

# Of a unit.  Ahead: asked for before any reader; joined: a reader came while it was under way.
_MISSING, _DEMANDED, _AHEAD, _JOINED, _PRESENT = range(5)


class Chunks(Protocol):
    """What a cache object needs of ``rafs_v6.ChunkMap``."""

    @property
    def blob(self) -> Any: ...
    @property
    def nchunks(self) -> int: ...
    @property
    def nunits(self) -> int: ...
    @property
    def flat_size(self) -> int: ...
    @property
    def digest_source(self) -> str: ...
    def units_of(self, off: int, length: int) -> range: ...
    def unit_range(self, unit: int) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True)
class Source:
    """Where the stored bytes of a blob are: ``blob_id`` in ``backend``."""

    backend: Backend
    blob_id: str


@dataclass(slots=True)
class Counters:
    """What ``status`` shows of a blob.  ``fetched``: stored bytes received; ``reused``: those
    that were not, because another blob here had the same chunks; ``recovered``: because they
    lay in the cache file already, with no record that could be believed."""

    fetched: int = 0
    reused: int = 0
    recovered: int = 0
    requests: int = 0
    errors: int = 0
    last_error: str = ""


class _Written:
    """How many bytes of [off, end) lie in the ascending ``extents``; for ascending questions."""

    def __init__(self, extents: list[tuple[int, int]]) -> None:
        self._extents = extents
        self._at = 0

    def __call__(self, off: int, end: int) -> int:
        extents, count = self._extents, 0
        while self._at < len(extents) and extents[self._at][1] <= off:
            self._at += 1
        at = self._at
        while at < len(extents) and extents[at][0] < end:
            count += min(end, extents[at][1]) - max(off, extents[at][0])
            at += 1
        return count


class CacheObject:
    """``oid``: its number in the C core; ``fill_fd``: borrowed, open until ``close`` returned."""

    def __init__(
        self,
        oid: int,
        name: str,
        chunks: Chunks,
        source: Source,
        core: Core,
        fetcher: Fetcher,
        pages: PageMap,
        record: ChunkMapFile | None,
        fill_fd: int,
    ) -> None:
        self.oid = oid
        self.name = name
        self.chunks = chunks
        self.source = source
        self.core = core
        self.pages = pages
        self.fill_fd = fill_fd
        self.counters = Counters()
        self.on_complete: Callable[[CacheObject], None] | None = None
        self.copies: Copies | None = None
        self.is_kernels = False  # its file is: presence is on no record but in the file itself
        self.presence_known = True  # over cachefiles only after ``found_on_disk``
        self._fetcher = fetcher
        self._record = record
        self._changed = threading.Condition(threading.Lock())
        self._persisting = threading.Lock()
        self._states = bytearray(chunks.nunits)
        self._dirty: set[int] = set()  # present, not recorded yet
        self._dirty_since = math.inf
        self._last_arrival = 0.0
        self._candidates: set[int] = set()  # maybe on disk; to be verified before they are fetched
        self._coff, self._clen, ulen = unit_columns(chunks.blob, chunks.nunits)
        self._asked: PageMap | None = None
        self._planner = Planner(self._coff, self._clen, ulen, is_here=self._is_under_way)
        self._missing = chunks.nunits
        self._closing = False

    def watch(self) -> None:
        """Learn from what readers ask for, from now on.  Not over cachefiles: there the kernel does
        not tell what it reads of what is there."""
        self._asked = asked = PageMap(self.chunks.flat_size)
        self.core.watch(self.oid, asked.memory)
        self._planner.was_asked = lambda unit: asked.any_set(*self._pages_of(unit))

    # -- what is there ---------------------------------------------------------------------

    def trust_pages(self) -> None:
        """The page map is a predecessor's: what it says is true."""
        if self.pages.empty():
            return
        for unit in range(self.chunks.nunits):
            if self.pages.all_set(*self._pages_of(unit)):
                self._found(unit)
                if not self._is_recorded(unit):
                    self._dirty.add(unit)
                    self._dirty_since = 0.0

    def load_presence(self, extents: list[tuple[int, int]]) -> None:
        """Take over what an earlier run left; the page map is empty, ``extents`` are no holes.

        Only what was recorded after a sync counts as present.  Other data that are there,
        and holes that were recorded, become candidates.
        """
        if not extents and (self._record is None or self._record.empty()):
            return
        written, lost = _Written(extents), 0
        for unit in range(self.chunks.nunits):
            off, end = self.chunks.unit_range(unit)
            recorded, data = self._is_recorded(unit), written(off, end)
            if recorded and data == end - off:
                self.pages.set(*self._pages_of(unit))
                self._found(unit)
            elif recorded or data:
                self._candidates.add(unit)
                lost += recorded
        if lost:
            log.warning("blob %s: %d recorded units are holes: to be verified", self.name, lost)

    def _is_recorded(self, unit: int) -> bool:
        chunk = self.chunks.blob.units[unit]
        return self._record is not None and self._record.has(chunk.first, chunk.count)

    def _found(self, unit: int) -> None:
        self._states[unit] = _PRESENT
        self._missing -= 1

    def found_on_disk(self, extents: list[tuple[int, int]]) -> None:
        """cachefiles: flat [off, end) that the kernel has; it will not ask for these."""
        with self._changed:
            for off, end in extents:
                for unit in self.chunks.units_of(off, end - off):
                    low, high = self.chunks.unit_range(unit)
                    if off <= low and high <= end and self._states[unit] == _MISSING:
                        self._found(unit)
            self.presence_known = True

    def _pages_of(self, unit: int) -> tuple[int, int]:
        off, end = self.chunks.unit_range(unit)
        return off // PAGE, -(-end // PAGE)

    @property
    def complete(self) -> bool:
        return self._missing == 0

    def bytes_present(self) -> int:
        """Flat bytes of the units that are there."""
        if self.complete:
            return self.chunks.flat_size
        ranges = (self.chunks.unit_range(u) for u, s in enumerate(self._states) if s == _PRESENT)
        return sum(end - off for off, end in ranges)

    def has(self, off: int, length: int) -> bool:
        return all(self._states[u] == _PRESENT for u in self.chunks.units_of(off, length))

    # -- asking ----------------------------------------------------------------------------

    def demand(self, off: int, length: int) -> None:
        """A reader waits for flat bytes [off, off + length): fetch what nobody fetches yet."""
        bold = self._fetcher.loads_everything(self.source.backend)
        with self._changed:
            wanted = [u for u in self.chunks.units_of(off, length) if self._must_ask(u)]
            if not wanted:
                return
            pace = self._fetcher.pace(self.source.backend)
            extents = self._planner.merge(wanted)
            asked = extents[-1].end
            reach = self._planner.reach(wanted[0], wanted[-1] + 1, pace, bold=bold)
            if pace.tuning.amplify is not None:
                along = self._amplified(off, pace.tuning.amplify, extents[-1])
                if along > reach.behind:
                    reach = Reach(0, along, self.chunks.nunits, sequential=reach.sequential)
            if len(extents) > 1:  # what lies before the last may be another's
                reach = replace(reach, before=0)
            extents[-1] = self._planner.extend(extents[-1], reach, self._may_read_ahead)
            end = extents[-1].end
            self._planner.follow(wanted[0], end)
            self._take(extents, _DEMANDED)
            rest = self._rest_of_file(wanted[0])
        self._submit_demand(extents)
        for extent in rest:
            self._fetcher.submit(Job(self, extent, Priority.AHEAD))
        if reach.sequential and reach.behind >= FIRST_WINDOW // 2 and end > asked:
            # a reader that goes on: one window more is under way while it reads this one
            self._load_ahead(wanted[0], end, reach)

    def _rest_of_file(self, unit: int) -> list[Extent]:
        """Requests for the file that ``unit`` is of, when it is to come whole.  Its end first: the
        loader of programs and libraries looks there next."""
        whole = self._planner.file(unit)
        if whole is None:
            return []
        left = [u for u in range(*whole) if self._may_read_ahead(u)]
        return self._planner.merge(left[-1:]) + self._planner.merge(left[:-1])

    def _is_under_way(self, unit: int) -> bool:
        return self._states[unit] != _MISSING

    def _amplified(self, off: int, size: int, extent: Extent) -> int:
        """Stored bytes behind ``extent`` that a request for ``size`` flat bytes would hold."""
        size = min(max(size, LEAST_AMPLIFIED), self.chunks.flat_size - off)
        units = self.chunks.units_of(off, size)
        return self.stored(units.stop - 1)[1] - extent.end_off if units else 0

    def _submit_demand(self, extents: list[Extent]) -> None:
        for extent in extents:
            self._fetcher.submit(Job(self, extent, Priority.DEMAND))

    def _must_ask(self, unit: int) -> bool:
        """For a reader that waits: must the unit be asked for?

        A miss was read off the page map, so a unit counts as present only with all its pages."""
        if self._states[unit] == _PRESENT and not self.pages.all_set(*self._pages_of(unit)):
            self._states[unit] = _MISSING
            self._missing += 1
        if self._states[unit] == _AHEAD:
            self._states[unit] = _JOINED
        return self._states[unit] == _MISSING

    def read_ahead(self, off: int) -> None:
        """A reader crossed the mark at ``off``: load what follows, behind all demand."""
        with self._changed:
            unit = self.chunks.units_of(off, 1).start
            following = self._planner.ahead(unit, self._fetcher.pace(self.source.backend))
        if following is not None:
            self._load_ahead(unit, *following)

    def _load_ahead(self, reader: int, first: int, reach: Reach) -> None:
        """Load from unit ``first`` on, for the reader that is at ``reader``."""
        with self._changed:
            if first >= min(self.chunks.nunits, reach.end) or not self._may_read_ahead(first):
                return
            extent = self._planner.merge([first])[0]
            extent = self._planner.extend(extent, reach, self._may_read_ahead)
            self._planner.follow(reader, extent.end)
        self._fetcher.submit(Job(self, extent, Priority.AHEAD))
        # when the reader comes there, the next window is due; it may skip some files
        for part in range(MARKS):
            unit = first + (extent.end - first) * part // (2 * MARKS)
            self.core.mark(self.oid, self.chunks.unit_range(unit)[0])

    def is_present(self, unit: int) -> bool:
        return self._states[unit] == _PRESENT

    def prefetch_extents(self, units: Sequence[int], limit: int) -> list[Extent]:
        """Requests of up to ``limit`` bytes for ascending units that nobody fetches yet.

        They are claimed when they start.
        """
        with self._changed:
            if self._closing:
                return []
            wanted = [u for u in units if self._states[u] == _MISSING]
            return self._planner.bridge(wanted, limit)

    def _may_read_ahead(self, unit: int) -> bool:
        """Neighbours that nobody asked for are taken only where they can be verified."""
        if self._states[unit] != _MISSING:
            return False
        if self.chunks.digest_source == "none":
            return True
        blob = self.chunks.blob
        return bool(blob.chunks[blob.units[unit].first].flags)

    def _take(self, extents: list[Extent], state: int) -> None:
        for extent in extents:
            for unit in range(extent.unit, extent.end):
                if self._states[unit] == _MISSING:
                    self._states[unit] = state

    # -- what a fetch job tells --------------------------------------------------------------

    def claim(self, first: int, end: int, limit: int) -> tuple[int, list[Extent]]:
        """For jobs that were not claimed when they were queued: about ``limit`` bytes of what is
        still missing of units [first, end), and the unit to go on with."""
        with self._changed:
            if self._closing:
                return end, []
            units: list[int] = []
            size = 0
            while first < end and (not units or size + self._clen[first] <= limit):
                if self._states[first] == _MISSING:
                    units.append(first)
                    size += self._clen[first]
                first += 1
            extents = self._planner.merge(units)
            self._take(extents, _AHEAD)
            return first, extents

    def reuse(self, extent: Extent) -> list[Extent]:
        """Take what of a claimed extent this node has already; what is left to fetch."""
        left = [u for u in range(extent.unit, extent.end) if not self._recover(u)]
        if self.copies is not None:
            left = self._copy(self.copies, left)
        if len(left) == extent.end - extent.unit:
            return [extent]
        return self._planner.merge(left)

    def _recover(self, unit: int) -> bool:
        """Is a candidate right?  Then it counts as present from now on."""
        if unit not in self._candidates:
            return False
        self._candidates.discard(unit)
        record = self.chunks.blob.units[unit]
        for chunk in range(record.first, record.first + record.count):
            if not holds_chunk(self.fill_fd, self.chunks.blob, chunk):
                return False
        off, end = self.chunks.unit_range(unit)
        self.core.filled(self.oid, off, end - off)
        self.counters.recovered += self._clen[unit]
        self.arrived(unit, unit + 1)
        return True

    def _copy(self, copies: Copies, wanted: list[int]) -> list[int]:
        """Fill the units that other blobs have, chunk by chunk; those that they have not."""
        blob = self.chunks.blob
        parts: dict[int, dict[int, bytes | None]] = {}  # of units that are not whole yet
        lacking: dict[int, range] = {}  # their other chunks
        for unit in wanted:
            first, end = blob.units[unit].first, blob.units[unit].first + blob.units[unit].count
            found: dict[int, bytes | None] = {}
            while first < end and (data := copies.find(self, first)) is not None:
                found[first] = data
                first += 1
            if first == end:
                self._reused(unit, found)
            else:
                parts[unit], lacking[unit] = found, range(first, end)

        def take(unit: int, chunk: int, fd: int, off: int) -> bool:
            data = None
            if not copy_chunk(fd, off, self.fill_fd, blob, chunk):
                data = read_chunk(fd, off, blob, chunk)
                if data is None:
                    return False
            parts[unit][chunk] = data
            if len(parts[unit]) == blob.units[unit].count:
                self._reused(unit, parts.pop(unit))
            return True

        copies.take_closed(self, lacking, take)
        return list(parts)

    def _reused(self, unit: int, parts: dict[int, bytes | None]) -> None:
        """``parts``: the plain bytes of its chunks; None for what is in the file already."""
        for chunk, data in parts.items():
            record = self.chunks.blob.chunks[chunk]
            if data is None:
                self.core.filled(self.oid, record.uoff, record.usize)
            else:
                self.core.fill_flat(self.oid, record.uoff, data)
        self.counters.reused += self._clen[unit]
        self.arrived(unit, unit + 1)

    def stored(self, unit: int) -> tuple[int, int]:
        """Stored bytes [off, end) of a unit."""
        return self._coff[unit], self._coff[unit] + self._clen[unit]

    def size(self, unit: int) -> int:
        """Stored bytes of a unit."""
        return self._clen[unit]

    def arrived(self, first: int, end: int) -> None:
        """Units [first, end) are verified and written."""
        with self._changed:
            for unit in range(first, end):
                if self._states[unit] != _PRESENT:
                    self._found(unit)
                    self._dirty.add(unit)
            self._last_arrival = time.monotonic()
            self._dirty_since = min(self._dirty_since, self._last_arrival)
            complete = self._missing == 0
            self._changed.notify_all()
        if complete and self.on_complete is not None:
            self.on_complete(self)

    def failed(self, first: int, end: int, errno: int, reason: str) -> None:
        """Units [first, end) could not be had: free them, and tell who waits for a demanded one.

        What was loaded ahead had few attempts; a reader that joined has all those of a demand.
        """
        if first >= end:
            return
        again: list[Extent] = []
        with self._changed:
            units = range(first, end)
            denied = [u for u in units if self._states[u] == _DEMANDED]
            joined = [u for u in units if self._states[u] == _JOINED]
            if joined and not self._closing:
                again = self._planner.merge(joined)
            else:
                denied = sorted(denied + joined)
            for unit in units:
                if self._states[unit] != _PRESENT:
                    self._states[unit] = _MISSING
            self._take(again, _DEMANDED)
            self.counters.errors += 1
            self.counters.last_error = reason
            self._changed.notify_all()
        if denied:
            (off, _), (_, flat_end) = map(self.chunks.unit_range, (denied[0], denied[-1]))
            self.core.fail(self.oid, off, flat_end - off, errno)
        self._submit_demand(again)

    # -- on disk -----------------------------------------------------------------------------

    def persist_when_due(self) -> None:
        """Not while data pour in: a sync holds up the writes of what arrives."""
        now = time.monotonic()
        if now - self._last_arrival >= QUIET_S or now - self._dirty_since >= PERSIST_WITHIN_S:
            self.persist()

    def persist(self) -> None:
        """Sync the data, then record them; what is not recorded is fetched again after a crash.

        After an ``OSError`` of the record the next call tries again.
        """
        with self._persisting:  # the descriptors are open until ``close`` has had it
            if self._record is None:
                return
            with self._changed:
                dirty, self._dirty = self._dirty, set()
                self._dirty_since = math.inf
            if not dirty:
                return
            try:
                os.fdatasync(self.fill_fd)
            except OSError:
                # the kernel says so once and takes the pages for written from then on
                self._end_record()
                raise
            units = self.chunks.blob.units
            try:
                self._record.record((units[u].first, units[u].count) for u in sorted(dirty))
            except OSError:
                with self._changed:
                    self._dirty |= dirty
                    self._dirty_since = time.monotonic()
                raise
        if self.copies is not None:
            self.copies.recorded(self, sorted(dirty))

    def _end_record(self) -> None:
        if self._record is not None:
            self._record.close()
            self._record = None

    def _in_flight(self) -> bool:
        return any(state in self._states for state in (_DEMANDED, _AHEAD, _JOINED))

    def close(self, *, deadline: float) -> None:
        """Wait for its jobs, record what is there, and leave the C core."""
        with self._changed:
            self._closing = True
            while self._in_flight() and time.monotonic() < deadline:
                self._changed.wait(max(0.0, deadline - time.monotonic()))
        self.core.remove_object(self.oid)
        if self._asked is not None:
            self._planner.was_asked = None
            self._asked.close()
        try:
            self.persist()
        except OSError as e:  # a full disk: these units are fetched again the next time
            log.error("blob %s: presence is not recorded: %s", self.name, e)
        with self._persisting:
            recorded = self._record is not None or self.is_kernels
            self._end_record()
        if self.copies is not None:
            self.copies.closed(self, sorted(self._dirty), recorded=recorded)
        self.pages.close()
