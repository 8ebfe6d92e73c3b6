"""The prefetches of mounted images: begun, followed, resumed by a successor.

``Run`` hands the units of a prefetch (wanted.py) to the fetcher, which takes small
batches of them as there is room.  That demand overtakes it and that little of it is
in flight at once is the fetcher's doing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Protocol

from nydus_fscache.backend.base import Backend
from nydus_fscache.errors import FscacheError
from nydus_fscache.fetch.cache_object import CacheObject
from nydus_fscache.fetch.job import MIB, Job, Priority
from nydus_fscache.fetch.links import Links
from nydus_fscache.fetch.pace import Pace
from nydus_fscache.fetch.queue import Fetcher
from nydus_fscache.fetch.trace import Tracer
from nydus_fscache.fetch.wanted import Wanted, select
from rafs_v6.values import dataclass

log = logging.getLogger("prefetch")

FIRST_BATCH = MIB  # what is wanted first is not to share the link with much else
MAX_BATCH = 4 * MIB
TRACE_AT_ONCE = 4 * MIB
KEPT_RUNS = 64

class Loadable(Protocol):
    """A mounted image.  ``on_record``: of its last prefetch what a successor goes on with, its
    number, policy and paths; empty when there was none."""

    on_record: dict[str, Any]

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def bootstrap(self) -> Path: ...
    @property
    def objects(self) -> list[CacheObject]: ...
    @property
    def is_open(self) -> bool: ...


@dataclass(slots=True)
class Run:
    """One prefetch: of ``image``, in the order that ``kind`` names."""

    number: int
    image: str
    kind: str
    wanted: Wanted
    started: float = field(default_factory=time.monotonic)
    errors_before: int = field(init=False)

    def __post_init__(self) -> None:
        self.errors_before = self._errors()

    def _errors(self) -> int:
        return sum(obj.counters.errors for obj in {obj for obj, _ in self.wanted})

    def _last_error(self) -> str:
        return next((obj.counters.last_error for obj, _ in self.wanted if obj.counters.errors), "")

    def progress(self) -> dict[str, Any]:
        total = done = left = 0
        for obj, units in self.wanted:
            for unit in units:
                size = obj.size(unit)
                total += size
                if obj.is_present(unit):
                    done += size
                else:
                    left += 1
        return {
            "id": self.number,
            "image": self.image,
            "from": self.kind,
            "bytes": total,
            "done": done,
            "units_left": left,
            "errors": (errors := self._errors() - self.errors_before),
            "last_error": self._last_error() if errors else "",
        }

    def submit(self, fetcher: Fetcher) -> None:
        by_backend: dict[Backend, list[tuple[CacheObject, Sequence[int]]]] = {}
        for obj, units in self.wanted:
            by_backend.setdefault(obj.source.backend, []).append((obj, units))
        for backend, wanted in by_backend.items():
            fetcher.prefetch(backend, _Plan(wanted, fetcher.pace(backend), self.kind))


class _Plan:
    """Jobs in batches of as much as is in flight, each in as few requests as its units allow."""

    def __init__(self, wanted: Wanted, pace: Pace, kind: str) -> None:
        self.left = sum(obj.size(unit) for obj, units in wanted for unit in units)
        self.at_once = TRACE_AT_ONCE if kind == "trace" else 0
        self.everything = kind == "all"
        self._pace = pace
        self._jobs = self._make(wanted)

    def __next__(self) -> Job:
        return next(self._jobs)

    def _make(self, wanted: Wanted) -> Iterator[Job]:
        batch: dict[CacheObject, set[int]] = {}
        size, enough = 0, FIRST_BATCH
        for obj, units in wanted:
            for unit in units:
                batch.setdefault(obj, set()).add(unit)
                size += obj.size(unit)
                if size >= max(self._pace.piece(), min(enough, self._pace.in_flight())):
                    yield from self._requests(batch)
                    self.left -= size
                    batch, size, enough = {}, 0, min(2 * enough, MAX_BATCH)
        yield from self._requests(batch)
        self.left = 0

    def _requests(self, batch: dict[CacheObject, set[int]]) -> Iterator[Job]:
        for obj, units in batch.items():
            for extent in obj.prefetch_extents(sorted(units), self._pace.piece()):
                yield Job(obj, extent, Priority.PREFETCH)


class Prefetcher:
    """The runs of this daemon.  Thread-safe."""

    def __init__(self, fetcher: Fetcher, tracer: Tracer) -> None:
        self._fetcher = fetcher
        self._tracer = tracer
        self._next = 1
        self._lock = threading.Lock()
        self._runs: dict[int, Run] = {}
        self._unopened: list[Loadable] = []  # to begin when all their objects are open
        self._links = Links()

    def begin(
        self, image: Loadable, policy: str, paths: list[str], number: int | None = None
    ) -> int:
        """The run's number, which the binding has on record too; 0 when there is nothing to load.

        ``number``: of a run that this one goes on with.
        """
        self._links.add(image.digest, image.bootstrap, image.objects)
        trace = self._tracer.watch(image.digest, image.objects)
        kind, wanted = select(policy, paths, image.bootstrap, image.objects, trace)
        run = self._start(image.name, kind, wanted, number)
        if run is None:
            return 0
        image.on_record = {"number": run.number, "policy": policy, "paths": paths}
        return run.number

    def begin_when_open(self, image: Loadable, policy: str) -> None:
        """``begin``, as soon as ``go_on`` finds all its objects open.

        It is on record before, so that a successor does it if this process does not live so long.
        """
        self._tracer.watch(image.digest, image.objects)
        image.on_record = {"number": 0, "policy": policy, "paths": []}
        self.resume([image])

    def resume(self, taken_over: Iterable[Loadable]) -> None:
        """Go on with what a predecessor was at when it was killed: now, or when it is open."""
        with self._lock:
            self._unopened += [s for s in taken_over if s.on_record]
        self.go_on()

    def go_on(self) -> bool:
        """Begin what waited for objects that are open now; was there anything?"""
        with self._lock:
            known = [(s, s.is_open) for s in self._unopened]
            self._unopened = [s for s, is_open in known if not is_open]
        ready = [s for s, is_open in known if is_open]
        for image in ready:
            told = image.on_record
            try:
                number = int(told["number"]) or None
                self.begin(image, str(told["policy"]), list(told["paths"]), number)
            except (FscacheError, KeyError, TypeError, ValueError) as e:
                log.error("%s: prefetch is not resumed: %s", image.name, e)
        return bool(ready)

    def _start(
        self, image: str, kind: str, wanted: Wanted, number: int | None = None
    ) -> Run | None:
        """None when there is nothing to load."""
        if all(obj.is_present(unit) for obj, units in wanted for unit in units):
            return None
        with self._lock:
            if number is None or number in self._runs:
                number = self._next
            self._next = max(self._next, number + 1)
            run = self._runs[number] = Run(number, image, kind, wanted)
            while len(self._runs) > KEPT_RUNS:
                del self._runs[min(self._runs)]
        log.info("%s: prefetch from %s", image, kind)
        run.submit(self._fetcher)
        return run

    def rest(self) -> None:
        """Regularly: give back memory that starts have left."""
        self._links.rest()

    def forget(self, image: Loadable) -> None:
        """Its objects are closed: runs that want them end."""
        self._links.remove(image.digest, image.objects)
        gone = set(image.objects)
        with self._lock:
            self._unopened = [s for s in self._unopened if s is not image]
            self._runs = {
                number: run
                for number, run in self._runs.items()
                if gone.isdisjoint(obj for obj, _ in run.wanted)
            }

    def progress(self) -> list[dict[str, Any]]:
        with self._lock:
            runs = list(self._runs.values())
        return [run.progress() for run in runs]
