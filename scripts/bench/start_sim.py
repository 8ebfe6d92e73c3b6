#!/usr/bin/env python3
"""Recorded starts against the product's own decisions, in a time of its own: no daemon, no load.

    scripts/bench/start_sim.py [--link MS,MBPS] [--timeline] NAME.rec.json…

The records are those of start_record.py.  What is simulated is the link (a latency a request, a
bandwidth shared by all), the reader (one thing after the other, its own time spread evenly) and
the workers.  What to fetch is decided by the real ``CacheObject`` and all below it.  Printed:
waits in a row, seconds, bytes.  The same each time, whatever else the machine does.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]


@dataclass
class Clock:
    """Events in the order of their times."""

    now: float = 1000.0
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    number: int = 0

    def at(self, when: float, what: Callable[[], None]) -> None:
        self.number += 1
        heapq.heappush(self.events, (when, self.number, what))

    def step(self) -> None:
        when, _, what = heapq.heappop(self.events)
        self.now = max(self.now, when)
        what()

    def run_until(self, when: float) -> None:
        while self.events and self.events[0][0] <= when:
            self.step()
        self.now = when


clock = Clock()
time.monotonic = lambda: clock.now  # type: ignore[assignment]

import rafs_v6  # noqa: E402 - with the time of the simulation
from nydus_fscache.cache.presence import PageMap, shared_map  # noqa: E402
from nydus_fscache.fetch import links as links_module  # noqa: E402
from nydus_fscache.fetch.cache_object import CacheObject  # noqa: E402
from nydus_fscache.fetch.job import MAX_REQUEST, Extent, Job, Priority, Source  # noqa: E402
from nydus_fscache.fetch.pace import Pace  # noqa: E402
from nydus_fscache.fetch.queue import BACKGROUND_WORKERS, WORKERS  # noqa: E402
from rafs_v6.reader.blobs import directory_blobs  # noqa: E402

SLICE = 64 << 10
DECIDE_S = 0.001  # until a miss is a request, and until names are followed


class _Later:
    """In place of a pool of threads."""

    def __init__(self, *_: object) -> None:
        pass

    def submit(self, call: Callable[[], None]) -> None:
        clock.at(clock.now + DECIDE_S, call)


links_module.ThreadPoolExecutor = _Later  # type: ignore[assignment, misc]


class _Core:
    """The C core, as far as a cache object sees it: fills only set pages."""

    def __init__(self) -> None:
        self.marks: dict[int, bool] = {}
        self.states: Any = None
        self.pages: Any = None

    def mark(self, oid: int, off: int) -> None:
        self.marks[off >> 12] = True

    def watch(self, oid: int, memory: object) -> None:
        pass

    def fail(self, *_: object) -> None:
        raise AssertionError("a fetch failed")

    def fill(
        self, oid: int, blob: object, first: int, count: int, stored: object, off: int
    ) -> tuple[int, int, None]:
        for unit in range(first, first + count):
            self.pages.set(*self.states.pages(unit))
        return count, 0, None


@dataclass
class _Transfer:
    job: Job
    extent: Extent
    then: Callable[[], None]
    received: int = 0
    done: int = 0


class _Link:
    """The far server, the link, the queue and its workers, as of queue.py."""

    def __init__(self, latency_s: float, rate: float) -> None:
        self.latency_s = latency_s
        self.rate = rate
        self.the_pace = Pace()
        self.demand: deque[Job] = deque()
        self.later: deque[Job] = deque()
        self.workers = self.background = 0
        self.active: deque[_Transfer] = deque()
        self.busy = False
        self.bytes = self.requests = 0

    def pace(self, backend: object) -> Pace:
        return self.the_pace

    def spare(self, backend: object) -> int:
        return self.the_pace.spare()

    def loads_everything(self, backend: object) -> bool:
        return False

    is_prefetching = loads_everything

    def submit(self, job: Job) -> None:
        is_demand = job.priority is Priority.DEMAND
        (self.demand if is_demand else self.later).append(job)
        self.the_pace.link.ask(job.size, ahead=not is_demand)
        clock.at(clock.now + DECIDE_S, self._hire)

    def _hire(self) -> None:
        while self.workers < WORKERS:
            if self.demand:
                job = self.demand.popleft()
                self.workers += 1
                self._ask(job, deque([job.extent]))
            elif self.later and self.background < BACKGROUND_WORKERS:
                job = self.later.popleft()
                self.workers += 1
                self.background += 1
                self._claim(job, job.extent.unit)
            else:
                return

    def _claim(self, job: Job, unit: int) -> None:
        extents: deque[Extent] = deque()
        while unit < job.extent.end:
            unit, more = job.target.claim(unit, job.extent.end, MAX_REQUEST)
            extents += more
        self._ask(job, extents)

    def _ask(self, job: Job, extents: deque[Extent]) -> None:
        if not extents:
            self.workers -= 1
            is_demand = job.priority is Priority.DEMAND
            self.background -= not is_demand
            self.the_pace.link.ask(-job.size, ahead=not is_demand)
            self._hire()
            return
        transfer = _Transfer(job, extents.popleft(), lambda: self._ask(job, extents))
        transfer.done = transfer.extent.unit
        asked = clock.now
        self.requests += 1

        def answered() -> None:
            self.the_pace.link.first_byte(clock.now - asked, clock.now)
            self.active.append(transfer)
            self._next_slice()

        clock.at(clock.now + self.latency_s, answered)

    def _next_slice(self) -> None:
        if self.busy or not self.active:
            return
        self.busy = True
        transfer = self.active.popleft()
        left = transfer.extent.end_off - transfer.extent.off - transfer.received
        count = min(SLICE, left)

        def arrived() -> None:
            self.busy = False
            self.bytes += count
            self.the_pace.link.received(count, clock.now)
            transfer.received += count
            target, end = transfer.job.target, transfer.done
            while (
                end < transfer.extent.end
                and target.stored(end)[1] <= transfer.extent.off + transfer.received
            ):
                end += 1
            if end > transfer.done:
                target.fill(transfer.done, end - transfer.done, memoryview(b""), 0)
                transfer.done = end
            if count == left:
                self.the_pace.link.ended(clock.now)
                transfer.then()
            else:
                self.active.append(transfer)
            self._next_slice()

        clock.at(clock.now + count / self.rate, arrived)


@dataclass
class Result:
    waits: int
    seconds: float
    needed: int
    fetched: int
    requests: int


def simulate(record: Path, latency_ms: float, mbps: float, *, timeline: bool = False) -> Result:
    known = json.loads(record.read_text())
    words = [word.encode() for word in known.get("argv", ())]
    flat = record.with_name(record.name.removesuffix(".rec.json") + ".flat")
    bootstrap = rafs_v6.Bootstrap.from_file(known["boot"])
    (info,) = bootstrap.blobs
    blobs = Path(known["blobs"])
    size = (blobs / info.blob_id).stat().st_size
    chunks = rafs_v6.ChunkMap.load(
        info, directory_blobs(blobs).read_at, bootstrap, blob_size=lambda _: size
    )
    links_module.command_of = lambda pid: (words, b"/")
    core, link = _Core(), _Link(latency_ms / 1000, mbps * 1e6)
    fd = os.open(flat, os.O_RDONLY)
    pages_fd = shared_map(chunks.flat_size)
    core.pages = PageMap(chunks.flat_size, pages_fd)
    obj = CacheObject(
        1, "blob", chunks, Source(None, info.blob_id), core, link, core.pages, None, fd  # type: ignore[arg-type]
    )
    obj._record.is_due = lambda: False  # type: ignore[method-assign]
    core.states = obj._states
    obj.watch()
    links = links_module.Links()
    links.add("image", Path(known["boot"]), [obj])
    names = _owners(bootstrap, chunks) if timeline else {}

    began, waits = clock.now, 0
    wanted = known["units"]
    pause = known["local_s"] / len(wanted)
    for unit in wanted:
        clock.run_until(clock.now + pause)
        first, end = obj._states.pages(unit)
        obj._asked.set(first, end)  # type: ignore[union-attr]
        off = chunks.unit_range(unit)[0]
        if not obj.is_present(unit):
            since, was = clock.now, obj._states[unit]
            obj.demand(off, 4096, 1)
            while not obj.is_present(unit):
                clock.step()
            waits += 1
            if timeline:
                how = "asked for before" if was else "MISS"
                took = 1000 * (clock.now - since)
                at = 1000 * (since - began)
                print(f"  {at:7.1f} ms, waited {took:5.1f} ({how}) {names.get(unit)}")
        for page in range(first, end):
            if core.marks.pop(page, None):
                obj.read_ahead(page << 12)
    seconds = clock.now - began
    clock.run_until(clock.now + 1)
    os.close(fd)
    os.close(pages_fd)
    needed = sum(map(obj.size, wanted))
    if timeline:
        unread = set(filter(obj.is_present, range(chunks.nunits))) - set(wanted)
        kinds: dict[str, int] = {}
        for unit in unread:
            kind = os.path.splitext(names.get(unit, ""))[1]
            kinds[kind] = kinds.get(kind, 0) + obj.size(unit)
        print("  unread:", sorted(((v, k) for k, v in kinds.items()), reverse=True)[:8])
    return Result(waits, seconds, needed, link.bytes, link.requests)


def _owners(bootstrap: rafs_v6.Bootstrap, chunks: rafs_v6.ChunkMap) -> dict[int, str]:
    owners: dict[int, str] = {}
    for path, inode in bootstrap.walk():
        if inode.is_reg:
            for ref in bootstrap.chunks(inode):
                for unit in chunks.units_of(ref.flat_off, ref.size) if ref.size else ():
                    owners.setdefault(unit, path.decode(errors="replace"))
    return owners


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--link", default="20,100", help="ms, MB/s")
    parser.add_argument("--timeline", action="store_true")
    args = parser.parse_args()
    latency, mbps = map(float, args.link.split(","))
    for record in args.records:
        r = simulate(record, latency, mbps, timeline=args.timeline)
        print(
            f"{record.name.removesuffix('.rec.json'):10} waits {r.waits:3}  {r.seconds:5.2f} s  "
            f"needed {r.needed / 1e6:5.1f} MB  fetched {r.fetched / 1e6:5.1f}"
            f"  x{r.fetched / r.needed:4.2f}  {r.requests:3} requests", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
