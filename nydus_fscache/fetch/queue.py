"""The order of fetches: a queue and its workers for each backend.

Demand overtakes read-ahead, which overtakes prefetch; a part of the workers is
kept free for demand, and prefetch has no more bytes in flight than keep the link
busy, so that a miss does not queue behind it at the far end.  A prefetch that takes
long stands back for as long as readers come: they share the link for nothing.  Every
job has a deadline.
"""

from __future__ import annotations

import errno
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from weakref import WeakValueDictionary

from nydus_fscache.backend.base import Backend
from nydus_fscache.config.tuning import Tuning
from nydus_fscache.fetch.job import MAX_REQUEST, Job, JobSource, Priority
from nydus_fscache.fetch.pace import Link, Pace
from nydus_fscache.fetch.receive import JOB_DEADLINE_S, Receiver

WORKERS = 28
BACKGROUND_WORKERS = 24  # at most so many do read-ahead and prefetch: the rest waits for demand
LONG_S = 0.5  # a prefetch that is done sooner pays off for the readers that it slows down
HOLD_S = 0.1  # how long a long one waits for the next reader
ORDERED_AHEAD_S = 0.002  # of the link's time that requests in an order may overlap
TRICKLE_S = 2.0  # it gets one request each so often, whatever readers do
IDLE_S = 10.0  # a worker without work ends, and its buffer with it


class Fetcher:
    """A queue with workers for each backend, so that one which is stuck holds up no other.

    ``trim``: called when a backend has no work left, to give back what memory its fills keep.
    """

    def __init__(self, trim: Callable[[], None], workers: int = WORKERS) -> None:
        self._trim = trim
        self._workers = workers
        self._lock = threading.Lock()
        self._queues: dict[Backend, _BackendQueue] = {}
        # as long as a queue has it
        self._links: WeakValueDictionary[str, Link] = WeakValueDictionary()
        self.disk_full = threading.Event()  # set by a write that found no space

    def _queue(self, backend: Backend) -> _BackendQueue:
        with self._lock:
            queue = self._queues.get(backend)
            if queue is None:
                link = self._links.get(backend.link) or Link()
                if backend.link:
                    self._links[backend.link] = link
                queue = self._queues[backend] = _BackendQueue(
                    link, self._trim, self._workers, self.disk_full
                )
            return queue

    def pace(self, backend: Backend) -> Pace:
        return self._queue(backend).pace

    def spare(self, backend: Backend) -> int:
        """Bytes of guesses that the link can take while a reader waits for a round trip."""
        return self._queue(backend).pace.spare()

    def loads_everything(self, backend: Backend) -> bool:
        """Takes no lock that a source is asked for jobs under."""
        return self._queue(backend).loads_everything()

    def is_prefetching(self, backend: Backend) -> bool:
        """Somebody knows what comes next.  Takes no lock, as above."""
        return bool(self._queue(backend).prefetching)

    def tune(self, backend: Backend, tuning: Tuning) -> None:
        """From now on, for all images of this backend."""
        self._queue(backend).pace.tuning = tuning

    def submit(self, job: Job) -> None:
        self._queue(job.target.source.backend).submit(job)

    def prefetch(self, backend: Backend, jobs: JobSource) -> None:
        """``jobs`` is asked for them under a lock of ours."""
        self._queue(backend).prefetch(jobs)

    def forget(self, backend: Backend) -> None:
        """The backend is to be closed: what is queued for it fails, unless there is another."""
        with self._lock:
            queue = self._queues.pop(backend, None)
        for job in queue.stop() if queue is not None else ():
            if job.target.source.backend is backend:
                _refuse(job)
            else:
                self.submit(job)

    def stop(self) -> None:
        """Jobs that run are finished, those in the queues fail with EIO."""
        with self._lock:
            queues, self._queues = list(self._queues.values()), {}
        for queue in queues:
            for job in queue.stop():
                _refuse(job)
        for queue in queues:
            queue.join(JOB_DEADLINE_S)


class _BackendQueue:
    """The queues and workers of one backend.  Workers come when there is work and go when not."""

    def __init__(
        self, link: Link, trim: Callable[[], None], workers: int, disk_full: threading.Event
    ) -> None:
        self.pace = Pace(link)
        self._disk_full = disk_full
        self._trim = trim
        self._limit = workers
        self._demand: deque[Job] = deque()
        self._ahead: deque[Job] = deque()
        self._sources: deque[JobSource] = deque()
        self._planned: Job | None = None  # the next of the first source
        self._ready = threading.Condition()
        self._background = 0
        self._prefetches = 0  # of those in the background
        self._prefetching = 0  # stored bytes of prefetch that are asked for and not here
        self._rests_until = 0.0  # prefetch, by its bandwidth; monotonic, as what follows
        self._taken_until = 0.0  # the link, by prefetch in an order
        self._demands = 0  # of the workers
        self._last_demand = self._last_prefetch = -math.inf
        self._idle = 0
        self._stopping = False
        self._threads: set[threading.Thread] = set()

    def submit(self, job: Job) -> None:
        with self._ready:
            if not self._stopping:
                is_demand = job.priority is Priority.DEMAND
                (self._demand if is_demand else self._ahead).append(job)
                self._ask(job, job.size)
                self._hire()
                return
        _refuse(job)

    def _ask(self, job: Job, nbytes: int) -> None:
        """Not for prefetch, of which no more is under way than ``_may_prefetch`` lets."""
        self.pace.link.ask(nbytes, ahead=job.priority is Priority.AHEAD)

    def prefetch(self, jobs: JobSource) -> None:
        with self._ready:
            if not self._stopping:
                self._last_demand = time.monotonic()  # who mounts is about to read
                self._sources.append(jobs)
                self._hire()

    @property
    def prefetching(self) -> int:
        return self._prefetching + len(self._sources)

    def loads_everything(self) -> bool:
        return any(source.everything for source in tuple(self._sources))

    def _hire(self) -> None:
        """Enough workers for what waits; each that takes prefetch hires the next.  Locked."""
        waiting = len(self._demand)
        if self._background < BACKGROUND_WORKERS:
            # one waits for the moment when prefetch may go on
            waiting += len(self._ahead) + (self._may_prefetch() or self._pause() > 0)
        # a worker that was woken counts as idle until it runs: so count what is queued
        for _ in range(min(waiting - self._idle, self._limit - len(self._threads))):
            thread = threading.Thread(target=self._work, name="fetch", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system gives no threads: those that are there do it
                if self._threads:
                    break
                raise
            self._threads.add(thread)
        self._ready.notify(waiting)

    def stop(self) -> list[Job]:
        """Take no more; what was queued."""
        with self._ready:
            self._stopping = True
            left = [*self._demand, *self._ahead]
            for job in left:
                self._ask(job, -job.size)
            for queue in (self._demand, self._ahead, self._sources):
                queue.clear()
            self._planned = None
            self._ready.notify_all()
        return left

    def join(self, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))

    def _next(self) -> Job | None:
        """The most urgent job; None when there was none for a while."""
        with self._ready:
            while not self._stopping:
                job = self._take()
                if job is not None:
                    return job
                self._idle += 1
                woken = self._ready.wait(self._pause() or IDLE_S)
                self._idle -= 1
                if not woken and not (self._demand or self._ahead or self._sources):
                    break
            self._threads.discard(threading.current_thread())
            if not self._threads:
                self._trim()
            return None

    def _take(self) -> Job | None:
        if self._demand:
            self._demands += 1
            return self._spend(self._demand.popleft())
        if self._background < BACKGROUND_WORKERS:
            if self._ahead:
                self._background += 1
                return self._spend(self._ahead.popleft())
            if self._may_prefetch():
                job, self._planned = self._planned, None
                assert job is not None
                self._background += 1
                self._prefetches += 1
                self._prefetching += job.size
                self._last_prefetch = now = time.monotonic()
                self._taken_until = max(self._taken_until, now) + self.pace.takes(job.size)
                self._spend(job)
                self._hire()
                return job
        return None

    def _spend(self, job: Job) -> Job:
        """What anybody fetches is taken from prefetch's share of the link."""
        rate = self.pace.tuning.bandwidth
        if rate:
            self._rests_until = max(self._rests_until, time.monotonic()) + job.size / rate
        return job

    def _may_prefetch(self) -> bool:
        """Is there prefetch to do, and no more in flight than keeps the link busy?

        A miss waits behind that much.
        """
        while self._planned is None and self._sources:
            self._planned = next(self._sources[0], None)
            if self._planned is None:
                self._sources.popleft()
        if self._planned is None or self._prefetches >= (self.pace.tuning.threads or WORKERS):
            return False
        if self._pause():
            return False
        room = max(self.pace.in_flight(), self._sources[0].at_once)
        return not self._prefetching or self._prefetching + self._planned.size <= room

    def _pause(self) -> float:
        """Seconds until prefetch may go on; 0: now, or there is none."""
        if self._planned is None:
            return 0.0
        now, until = time.monotonic(), self._rests_until
        if self._sources[0].at_once:
            # all at once they would share the link, and what is wanted first would come last
            until = max(until, self._taken_until - ORDERED_AHEAD_S)
        # by the least that it takes: while nothing is known of the link, a small one is not long
        if self.pace.takes(sum(source.left for source in self._sources)) > LONG_S:
            last = now if self._demands else self._last_demand
            until = max(until, min(last + HOLD_S, self._last_prefetch + TRICKLE_S))
        return max(0.0, until - now)

    def _arrived(self, nbytes: int) -> None:
        """Bytes of prefetch are here: there may be room for more."""
        with self._ready:
            self._prefetching -= nbytes
            if self._background < BACKGROUND_WORKERS and self._may_prefetch():
                self._hire()

    def _done(self, job: Job) -> None:
        """One of those in the background is free again."""
        with self._ready:
            self._background -= 1
            self._prefetches -= job.priority is Priority.PREFETCH
            if job.priority is Priority.AHEAD:
                self._ask(job, -job.size)
            self._hire()

    def _work(self) -> None:
        receiver = Receiver(self._disk_full)
        while (job := self._next()) is not None:
            if job.priority is Priority.DEMAND:
                receiver.run(job.target, job.extent, self.pace)
                self._ask(job, -job.size)
                with self._ready:
                    self._demands -= 1
                    self._last_demand = time.monotonic()
            else:
                self._run_in_background(receiver, job)

    def _run_in_background(self, receiver: Receiver, job: Job) -> None:
        due = job.size if job.priority is Priority.PREFETCH else 0

        def arrived(nbytes: int) -> None:
            nonlocal due
            nbytes = min(nbytes, due)
            due -= nbytes
            if nbytes:
                self._arrived(nbytes)

        try:
            unit = job.extent.unit
            while unit < job.extent.end and not self._stopping:
                unit, extents = job.target.claim(unit, job.extent.end, MAX_REQUEST)
                for extent in extents:
                    receiver.run(job.target, extent, self.pace, arrived)
        finally:
            arrived(due)
            self._done(job)


def _refuse(job: Job) -> None:
    """A job that will not run: its readers are told.  Only demand has claimed its units."""
    if job.priority is Priority.DEMAND:
        job.target.failed(job.extent.unit, job.extent.end, errno.EIO, "its image was given up")
