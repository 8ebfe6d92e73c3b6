"""One blob's cache file on this node, whatever number of images use it.

Guarantees: a unit is fetched by at most one job at a time; a unit counts as
present only after the C core has verified and written it; a failed fetch frees
its units at once, so that the next reader tries again.  Answers to the kernel
are the C core's: here is only decided what to fetch.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from nydus_fscache.cache.presence import ChunkMapFile, PageMap
from nydus_fscache.cache.reuse import Copies
from nydus_fscache.core.core import Core
from nydus_fscache.core.units import unit_columns, units_present
from nydus_fscache.fetch.extents import UnitTable
from nydus_fscache.fetch.failures import SLOW_S, Failures
from nydus_fscache.fetch.job import Counters, Extent, Filled, Job, Priority, Source
from nydus_fscache.fetch.loader import Loader
from nydus_fscache.fetch.local import LocalUnits
from nydus_fscache.fetch.programs import Programs
from nydus_fscache.fetch.queue import Fetcher
from nydus_fscache.fetch.record import LostWritesError, Record
from nydus_fscache.fetch.units import BytesWithin, Chunks, State, UnitStates
from nydus_fscache.files import OpenFile
from nydus_fscache.image.elf import Needs

log = logging.getLogger("cache")


class Follower(Protocol):
    """An image that knows what is needed next.  Called by whoever brings data: waits for
    nothing."""

    def program(self, needs: Needs) -> None:
        """A program that is wanted came here, and needs these."""

    def demanded(self, obj: CacheObject, pid: int) -> None:
        """A reader waits for a unit; its process, 0 when it is not known."""

    def came(self, obj: CacheObject, units: Sequence[int]) -> None:
        """Each a file that is no program, and that somebody reads or is expected to."""


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
        self.counters = Counters()
        # all is there for good: nobody needs to look at what readers ask for any more
        self.on_settled: Callable[[CacheObject], None] | None = None
        self.is_kernels = False  # its file is: presence is on no record but in the file itself
        self.presence_known = True  # over cachefiles only after ``found_on_disk``
        self._fetcher = fetcher
        self._changed = threading.Condition(threading.Lock())
        coff, self._clen, ulen = unit_columns(chunks.blob, chunks.nunits)
        self._table = UnitTable(coff, self._clen, ulen)
        self._states = UnitStates(chunks)
        self._failures = Failures()
        self._record = Record(chunks, record)
        self.fill_fd = fill_fd
        self._file = OpenFile(fill_fd)
        self._local = LocalUnits(oid, self, chunks, core, self._file, self._clen, self.counters)
        self.followers: dict[str, Follower] = {}  # by image
        self._programs = Programs(
            self._table, chunks, self._file, self.has, lambda off: core.mark(oid, off)
        )
        self._loader = Loader(
            self, chunks, self._table, self._states, self._failures, self._programs, fetcher,
            self._changed, lambda off: core.mark(oid, off),
        )  # fmt: skip
        self._asked: PageMap | None = None
        self._closing = False

    def share(self, copies: Copies) -> None:
        """From now on chunks that other blobs have are copied."""
        self._local.copies = copies

    def watch(self) -> None:
        """Learn from what readers ask for, from now on.  Not over cachefiles: there the kernel does
        not tell what it reads of what is there."""
        self._asked = asked = PageMap(self.chunks.flat_size)
        self.core.watch(self.oid, asked.memory)
        self._loader.learn_from(asked)
        self._programs.found = self._follow_program
        self._programs.other = self._loader.was_read = self._follow_files

    # -- what is there ---------------------------------------------------------------------

    def trust_pages(self) -> None:
        """The page map is an earlier service's: what it says is true."""
        if self.pages.empty():
            return
        chunks = self.chunks
        present = units_present(chunks.blob, chunks.nunits, chunks.flat_size, self.pages.memory)
        unit = present.find(1)
        while unit >= 0:
            self._states.found(unit)
            if not self._record.has(unit):
                self._record.add([unit], 0.0, 0)
            unit = present.find(1, unit + 1)

    def load_presence(self, extents: list[tuple[int, int]]) -> None:
        """Take over what an earlier run left; the page map is empty, ``extents`` are no holes.

        Only what was recorded after a sync counts as present.  Other data that are there,
        and holes that were recorded, become candidates.
        """
        if not extents and self._record.empty():
            return
        written, lost = BytesWithin(extents), 0
        for unit in range(self.chunks.nunits):
            off, end = self.chunks.unit_range(unit)
            recorded, data = self._record.has(unit), written(off, end)
            if recorded and data == end - off:
                self.pages.set(*self._states.pages(unit))
                self._states.found(unit)
            elif recorded or data:
                self._local.candidates.add(unit)
                lost += recorded
        if lost:
            log.warning("blob %s: %d recorded units are holes: to be verified", self.name, lost)

    def found_on_disk(self, extents: list[tuple[int, int]]) -> None:
        """cachefiles: flat [off, end) that the kernel has; it will not ask for these."""
        with self._changed:
            for off, end in extents:
                for unit in self.chunks.units_of(off, end - off):
                    low, high = self.chunks.unit_range(unit)
                    if off <= low and high <= end and self._states[unit] == State.MISSING:
                        self._states.found(unit)
            self.presence_known = True

    @property
    def is_open(self) -> bool:
        return not self._closing

    @property
    def complete(self) -> bool:
        return self._states.missing == 0

    @property
    def is_settled(self) -> bool:
        """Is it complete, and on record?  Then no failed write can make it incomplete again."""
        return self.complete and self._record.is_kept and not self._record.unrecorded()

    def bytes_present(self) -> int:
        """Flat bytes of the units that are there."""
        return self._states.bytes_present()

    def has(self, off: int, length: int) -> bool:
        return all(self.is_present(u) for u in self.chunks.units_of(off, length))

    def is_present(self, unit: int) -> bool:
        return self._states[unit] == State.PRESENT

    def stored(self, unit: int) -> tuple[int, int]:
        """Stored bytes [off, end) of a unit."""
        return self._table.stored(unit)

    def size(self, unit: int) -> int:
        """Stored bytes of a unit."""
        return self._clen[unit]

    # -- asking ----------------------------------------------------------------------------

    def demand(self, off: int, length: int, pid: int = 0) -> None:
        """A reader waits for flat bytes [off, off + length): fetch what nobody fetches yet."""
        with self._changed:
            units = self.chunks.units_of(off, length)
            joined = [u for u in units if self._states[u] == State.AHEAD]
            missing = [u for u in units if self._must_ask(u)]
            now = time.monotonic()
            refused = {u: e for u in missing if (e := self._failures.pending(u, now))}
            wanted = [u for u in missing if u not in refused]
        for unit, error in refused.items():
            self._refuse([unit], error)
        if wanted:
            for follower in tuple(self.followers.values()):
                follower.demanded(self, pid)
            self._loader.demand(off, wanted)
        elif joined:
            self._loader.joined(joined[0])

    def _submit_demand(self, extents: list[Extent]) -> None:
        for extent in extents:
            self._fetcher.submit(Job(self, extent, Priority.DEMAND))

    def _must_ask(self, unit: int) -> bool:
        """For a reader that waits: must the unit be asked for?

        A miss was read off the page map, so a unit counts as present only with all its pages."""
        if self.is_present(unit) and not self.pages.all_set(*self._states.pages(unit)):
            self._states.lost(unit)
        self._states.join(unit)
        return self._states[unit] == State.MISSING

    def read_ahead(self, off: int) -> None:
        """A reader crossed the mark at ``off``: load what follows, behind all demand."""
        self._loader.passed(off)

    def load_program(self, units: Sequence[int]) -> None:
        """A program is about to need these units of one file."""
        self._loader.load_program(units)

    def load_named(self, units: Sequence[int]) -> None:
        """Files of a unit each, which one that is read names, likely ones first."""
        self._loader.load_named(units)

    def read(self, off: int, length: int) -> bytes:
        """Flat bytes of units that are here."""
        return self._file.read_at(off, length)

    def _follow_program(self, needs: Needs) -> None:
        for follower in tuple(self.followers.values()):
            follower.program(needs)

    def _follow_files(self, units: Sequence[int]) -> None:
        for follower in tuple(self.followers.values()):
            follower.came(self, units)

    def expect_kinds(self) -> None:
        """``know_kinds`` will be called in any case, and soon."""
        self._loader.expect_kinds()

    def know_kinds(self, kinds: Sequence[int]) -> None:
        """Of the file that begins with each unit: equal for names with one suffix, 0 for none.
        Empty: it is not known."""
        self._loader.know_kinds(kinds)

    def prefetch_extents(self, units: Sequence[int], limit: int) -> list[Extent]:
        """Requests of up to ``limit`` bytes for ascending units that nobody fetches yet.

        They are claimed when they start.
        """
        with self._changed:
            if self._closing:
                return []
            wanted = [u for u in units if self._states[u] == State.MISSING]
            return self._table.coalesce(wanted, limit)

    # -- the target of fetch jobs (job.Target) -----------------------------------------------

    def claim(self, first: int, end: int, limit: int) -> tuple[int, list[Extent]]:
        with self._changed:
            if self._closing:
                return end, []
            units: list[int] = []
            size = 0
            while first < end and (not units or size + self._clen[first] <= limit):
                if self._states[first] == State.MISSING:
                    units.append(first)
                    size += self._clen[first]
                first += 1
            extents = self._table.merge(units)
            self._states.take(extents, State.AHEAD)
            return first, extents

    def reuse(self, extent: Extent) -> list[Extent]:
        failures = self._record.failures

        def arrived(unit: int) -> None:
            self._arrived(unit, unit + 1, failures)

        rest = self._local.take(range(extent.unit, extent.end), arrived)
        return [extent] if len(rest) == extent.end - extent.unit else self._table.merge(rest)

    def fill(self, first: int, count: int, stored: memoryview, stored_off: int) -> Filled:
        blob, failures = self.chunks.blob, self._record.failures
        done, error, bad = self.core.fill(self.oid, blob, first, count, stored, stored_off)
        if done:
            self._arrived(first, first + done, failures)
        if bad is None:
            return Filled(done, error)
        digest = bytes(blob.chunks[bad].digest).hex()
        return Filled(done, error, f"chunk {bad} (digest {digest})")

    def _arrived(self, first: int, end: int, failures: int) -> None:
        """Units [first, end) are verified and written; ``failures``: of syncs, before that."""
        with self._changed:
            new = [unit for unit in range(first, end) if self._states.found(unit)]
            for unit in new:
                self._failures.forget(unit)
            is_kept = self._record.add(new, time.monotonic(), failures)
            was_last = bool(new) and self.complete
            self._changed.notify_all()
        if not is_kept:
            self._lose(new, errno.EIO, "a sync failed while they were written")
            return
        self._programs.arrived(first, end)
        if was_last or self._record.is_careful():
            # the sooner a whole blob is on record, the sooner the kernel serves its readers alone
            with contextlib.suppress(OSError):  # it was told, and is tried again
                self.persist()

    def failed(self, first: int, end: int, error: int, reason: str, took_s: float = 0.0) -> None:
        """Data loaded ahead had few attempts; for a reader that joined it is asked again."""
        if first >= end:
            return
        again: list[Extent] = []
        with self._changed:
            units = range(first, end)
            refused = [u for u in units if self._states[u] == State.DEMANDED]
            joined = [u for u in units if self._states[u] == State.JOINED]
            if joined and not self._closing:
                again = self._table.merge(joined)
            else:
                refused = sorted(refused + joined)
            self._states.free(units)
            self._states.take(again, State.DEMANDED)
            now = time.monotonic()
            for unit in units:
                if self._states[unit] == State.MISSING:
                    self._failures.note(unit, error, now, took_s)
            self.counters.errors += 1
            self.counters.last_error = reason
            self._changed.notify_all()
        if refused:
            self._refuse(refused, error)
        self._submit_demand(again)

    def _refuse(self, units: Sequence[int], error: int) -> None:
        """Readers of these adjacent units get the error."""
        (off, _), (_, end) = map(self.chunks.unit_range, (units[0], units[-1]))
        self.core.fail(self.oid, off, end - off, error)

    # -- on disk -----------------------------------------------------------------------------

    def persist_when_due(self) -> None:
        if self._record.is_due():
            self.persist()

    def persist(self) -> None:
        """Sync the data, then record them; what is not recorded is fetched again after a crash.

        After an ``OSError`` of the sync the units since the last one are missing again.
        """
        if self.is_kernels:  # which writes directly: each write is told its error
            return
        try:
            recorded = self._record.write(self.fill_fd)
        except LostWritesError as e:
            if e.errno in (errno.ENOSPC, errno.EDQUOT):
                self._fetcher.disk_full.set()
            self._lose(e.units, e.errno or errno.EIO, e.strerror or "")
            raise
        if recorded and self.is_settled and self.on_settled is not None:
            self.on_settled(self)
        if self._local.copies is not None and recorded:
            self._local.copies.recorded(self, recorded)

    def _lose(self, units: Sequence[int], error: int, why: str) -> None:
        """Units that counted as present may be other bytes soon: they are to be fetched again, but
        not at once, as the disk does not take them."""
        if not units:
            return
        reason = f"writing back the cache file: {why}"
        code = errno.ENOSPC if error in (errno.ENOSPC, errno.EDQUOT) else errno.EIO
        log.error("blob %s: %d units are lost: %s", self.name, len(units), reason)
        with self._changed:
            now = time.monotonic()
            for unit in units:
                off, end = self.chunks.unit_range(unit)
                try:
                    self.core.unfill(self.oid, off, end - off)
                except OSError:  # it has left the core, and the map may be a successor's
                    self.pages.clear(*self._states.pages(unit))
                self._states.lost(unit)
                self._failures.note(unit, code, now, SLOW_S)
            self.counters.errors += 1
            self.counters.last_error = reason

    def close(self, *, deadline: float) -> None:
        """Wait for its jobs, record what is there, and leave the C core."""
        with self._changed:
            self._closing = True
            while self._states.in_flight() and time.monotonic() < deadline:
                self._changed.wait(max(0.0, deadline - time.monotonic()))
        self._file.close()  # before the descriptor's number can become another file's
        self.core.remove_object(self.oid)
        with self._changed:
            self._loader.learn_from(None)
            if self._asked is not None:
                self._asked.close()
        try:
            self.persist()
        except OSError as e:  # a full disk: these units are fetched again the next time
            log.error("blob %s: presence is not recorded: %s", self.name, e)
        recorded = self._record.close() or self.is_kernels
        if self._local.copies is not None:
            self._local.copies.closed(self, self._record.unrecorded(), recorded=recorded)
        self.pages.close()
