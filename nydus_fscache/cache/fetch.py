"""The workers that bring stored bytes: receive, and let C decode, verify and write as they come.

Demand overtakes read-ahead, which overtakes prefetch; a part of the workers is
kept free for demand, and prefetch has no more bytes in flight than keep the link
busy, so that a miss does not queue behind it at the far end.  A job's memory is
one bounded buffer a worker, whatever the size of its extent.  Every job has a
deadline.
"""

from __future__ import annotations

import enum
import errno
import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nydus_fscache.backend.base import Backend
from nydus_fscache.cache.plan import MAX_REQUEST, MIB, Extent, Pace
from nydus_fscache.core import Core, Decoder
from nydus_fscache.errors import BackendError

if TYPE_CHECKING:
    from nydus_fscache.cache.object import CacheObject

log = logging.getLogger("fetch")

WORKERS = 12
BACKGROUND_WORKERS = 8  # at most so many do read-ahead and prefetch: the rest waits for demand
BUFFER = MIB // 2  # grows to the largest unit
JOB_DEADLINE_S = 60.0
IDLE_S = 10.0  # a worker without work ends, and its buffers with it


class Priority(enum.IntEnum):
    DEMAND = 0
    AHEAD = 1
    PREFETCH = 2


@dataclass(frozen=True, slots=True)
class Job:
    """Fetch the units of ``extent``.  Demand has claimed them; the others claim when they start."""

    object: CacheObject
    extent: Extent
    priority: Priority

    @property
    def size(self) -> int:
        return self.extent.end_off - self.extent.off


class Fetcher:
    """A lane of workers for each backend, so that one which is stuck holds up no other."""

    def __init__(self, core: Core, workers: int = WORKERS) -> None:
        self._core = core
        self._workers = workers
        self._lock = threading.Lock()
        self._lanes: dict[Backend, _Lane] = {}
        self.disk_full = threading.Event()  # set by a write that found no space

    def _lane(self, backend: Backend) -> _Lane:
        with self._lock:
            lane = self._lanes.get(backend)
            if lane is None:
                lane = self._lanes[backend] = _Lane(self._core, self._workers, self.disk_full)
            return lane

    def pace(self, backend: Backend) -> Pace:
        return self._lane(backend).pace

    def submit(self, job: Job) -> None:
        self._lane(job.object.source.backend).submit([job])

    def prefetch(self, obj: CacheObject, extents: list[Extent]) -> None:
        jobs = [Job(obj, extent, Priority.PREFETCH) for extent in extents]
        self._lane(obj.source.backend).submit(jobs)

    def forget(self, backend: Backend) -> None:
        """The backend was closed: what is queued for it fails."""
        with self._lock:
            lane = self._lanes.pop(backend, None)
        if lane is not None:
            lane.stop()

    def stop(self) -> None:
        """Jobs that run are finished, those in the queues fail with EIO."""
        with self._lock:
            lanes, self._lanes = list(self._lanes.values()), {}
        for lane in lanes:
            lane.stop()
        for lane in lanes:
            lane.join(JOB_DEADLINE_S)


class _Lane:
    """The queues and workers of one backend.  Workers come when there is work and go when not."""

    def __init__(self, core: Core, workers: int, disk_full: threading.Event) -> None:
        self.pace = Pace()
        self._disk_full = disk_full
        self._core = core
        self._limit = workers
        self._queues: tuple[deque[Job], ...] = (deque(), deque(), deque())
        self._ready = threading.Condition()
        self._background = 0
        self._prefetching = 0  # stored bytes of prefetch in flight
        self._idle = 0
        self._stopping = False
        self._threads: set[threading.Thread] = set()

    def submit(self, jobs: list[Job]) -> None:
        with self._ready:
            if not self._stopping:
                for job in jobs:
                    self._queues[job.priority].append(job)
                # a worker that was woken counts as idle until it runs: so count what is queued
                queued = sum(len(queue) for queue in self._queues)
                wanted = min(queued - self._idle, self._limit - len(self._threads))
                for _ in range(wanted):
                    thread = threading.Thread(target=self._work, name="fetch", daemon=True)
                    self._threads.add(thread)
                    thread.start()
                self._ready.notify(len(jobs))
                return
        for job in jobs:
            _refuse(job)

    def stop(self) -> None:
        with self._ready:
            self._stopping = True
            left = [job for queue in self._queues for job in queue]
            for queue in self._queues:
                queue.clear()
            self._ready.notify_all()
        for job in left:
            _refuse(job)

    def join(self, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))

    def _next(self) -> Job | None:
        """The most urgent job; None when there was none for a while."""
        demand, ahead, prefetch = self._queues
        with self._ready:
            while not self._stopping:
                if demand:
                    return demand.popleft()
                if self._background < BACKGROUND_WORKERS:
                    if ahead:
                        self._background += 1
                        return ahead.popleft()
                    if prefetch and self._may_prefetch(prefetch[0]):
                        self._background += 1
                        self._prefetching += prefetch[0].size
                        return prefetch.popleft()
                self._idle += 1
                woken = self._ready.wait(IDLE_S)
                self._idle -= 1
                if not woken and not any(self._queues):
                    break
            self._threads.discard(threading.current_thread())
            return None

    def _may_prefetch(self, job: Job) -> bool:
        """No more in flight than keeps the link busy: a miss waits behind that much."""
        limit = self.pace.in_flight()
        return not self._prefetching or self._prefetching + job.size <= limit

    def _done(self, job: Job) -> None:
        with self._ready:
            if job.priority is not Priority.DEMAND:
                self._background -= 1
            if job.priority is Priority.PREFETCH:
                self._prefetching -= job.size
            self._ready.notify_all()

    def _work(self) -> None:
        worker = _Worker(self._core, self._disk_full)
        while (job := self._next()) is not None:
            try:
                if job.priority is Priority.DEMAND:
                    worker.run(job.object, job.extent, self.pace)
                    continue
                unit = job.extent.unit
                while unit < job.extent.end and not self._stopping:
                    limit = self.pace.piece() if job.priority is Priority.PREFETCH else MAX_REQUEST
                    unit, extents = job.object.claim(unit, job.extent.end, limit)
                    for extent in extents:
                        worker.run(job.object, extent, self.pace, prefetch=True)
            finally:
                self._done(job)


def _refuse(job: Job) -> None:
    """A job that will not run: who waits for it is told.  Only demand has claimed its units."""
    if job.priority is Priority.DEMAND:
        job.object.failed(job.extent.unit, job.extent.end, errno.EIO, "its image was given up")


class _Worker:
    """One thread's decoder and receive buffer."""

    def __init__(self, core: Core, disk_full: threading.Event) -> None:
        self._core = core
        self._disk_full = disk_full
        self._decoder = Decoder()
        self._buffer = bytearray(BUFFER)

    def run(
        self, obj: CacheObject, extent: Extent, pace: Pace, *, prefetch: bool = False
    ) -> None:
        """Never raises: what cannot be had is told to the object and logged."""
        self._done = extent.unit
        try:
            parts = obj.reuse(extent)
        except OSError as e:
            self._failed(obj, extent, e)
            return
        for part in parts:
            self._fetch(obj, part, pace, prefetch)

    def _fetch(self, obj: CacheObject, extent: Extent, pace: Pace, prefetch: bool) -> None:
        self._done = extent.unit
        try:
            done = self._receive(obj, extent, pace, prefetch)
            if done != extent.end:
                self._failed(obj, extent, BackendError("stopped"))
        except Exception as e:  # a fault of ours must reach the reader as EIO, not as a hang
            self._failed(obj, extent, e)

    def _failed(self, obj: CacheObject, extent: Extent, error: Exception) -> None:
        """From the first unit on that is not done, the extent could not be had."""
        code, reason = errno.EIO, str(error)
        if isinstance(error, OSError) and not isinstance(error, BackendError):
            reason = f"writing the cache file: {error}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                code = errno.ENOSPC
                self._disk_full.set()
        elif not isinstance(error, BackendError):
            log.error("blob %s: fetch failed", obj.name, exc_info=error)
            reason = f"internal error: {error!r}"
        log.error("blob %s: units %d..%d: %s", obj.name, self._done, extent.end - 1, reason)
        obj.failed(self._done, extent.end, code, reason)

    def _receive(self, obj: CacheObject, extent: Extent, pace: Pace, prefetch: bool) -> int:
        """Stream the extent, filling units as soon as they are whole."""
        log.debug(
            "blob %s: units %d..%d, %d bytes", obj.name, extent.unit, extent.end - 1,
            extent.end_off - extent.off,
        )  # fmt: skip
        largest = max(obj.stored(u)[1] - obj.stored(u)[0] for u in range(extent.unit, extent.end))
        if largest > len(self._buffer):
            self._buffer = bytearray(largest)
        total = extent.end_off - extent.off
        base, have, received = extent.off, 0, 0  # the buffer holds stored [base, base + have)
        started = time.monotonic()
        obj.counters.requests += 1
        source = obj.source
        transfer = pace.transfer()
        with (
            transfer,
            memoryview(self._buffer) as view,
            source.backend.stream(
                source.blob_id,
                extent.off,
                total,
                deadline=started + JOB_DEADLINE_S,
                prefetch=prefetch,
            ) as stream,
        ):
            while received < total:
                if have == len(view):  # keep the part of the next unit, make room behind it
                    keep_from = min(have, obj.stored(self._done)[0] - base)
                    left = have - keep_from
                    view[:left] = bytes(view[keep_from:have])
                    base, have = base + keep_from, left
                count = stream.readinto(view[have : min(len(view), have + total - received)])
                transfer.received(count)
                have += count
                received += count
                obj.counters.fetched += count
                self._fill_whole_units(obj, extent, view, base, have)
        return self._done

    def _fill_whole_units(
        self, obj: CacheObject, extent: Extent, view: memoryview, base: int, have: int
    ) -> None:
        end = self._done
        while end < extent.end and obj.stored(end)[1] <= base + have:
            end += 1
        while self._done < end:
            first = self._done
            done, error, bad_chunk = self._core.fill(
                obj.oid, self._decoder, obj.chunks.blob, first, end - first, view[:have], base
            )
            if done:
                self._done = first + done
                obj.arrived(first, self._done)
            if error:
                self._refuse(obj, error, bad_chunk)

    def _refuse(self, obj: CacheObject, error: int, bad_chunk: int | None) -> None:
        """A unit did not decode, verify or write: a bad chunk costs its own readers only."""
        if error not in (errno.EILSEQ, errno.EBADMSG):
            raise OSError(error, errno.errorcode.get(error, str(error)))
        what = "a unit"
        if bad_chunk is not None:
            digest = bytes(obj.chunks.blob.chunks[bad_chunk].digest).hex()
            what = f"chunk {bad_chunk} (digest {digest})"
        how = "does not match its digest" if error == errno.EILSEQ else "does not decode"
        reason = f"{what} {how}"
        log.error("blob %s: %s: its readers get EIO", obj.name, reason)
        unit = self._done
        self._done = unit + 1
        obj.failed(unit, unit + 1, errno.EIO, reason)
