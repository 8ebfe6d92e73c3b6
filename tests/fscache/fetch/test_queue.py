"""The order of fetches, and that one backend's trouble is its own."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator

import pytest
from fetch_kit import UNIT, FakeTarget, backend_of, make_target

from nydus_fscache.fetch.job import Job, JobSource, Priority
from nydus_fscache.fetch.queue import Fetcher


@pytest.fixture
def trims() -> list[int]:
    return []


@pytest.fixture
def fetcher(trims: list[int]) -> Iterator[Fetcher]:
    fetcher = Fetcher(lambda: trims.append(1), workers=1)
    yield fetcher
    fetcher.stop()


class _Prefetch:
    """Each unit of a target a job."""

    everything = True

    def __init__(self, target: FakeTarget, units: range, at_once: int = 0) -> None:
        self.at_once = at_once
        self.left = len(units) * UNIT
        self._jobs = (Job(target, target.extent(u, u + 1), Priority.PREFETCH) for u in units)

    def __next__(self) -> Job:
        self.left -= UNIT
        return next(self._jobs)


class _Gate:
    """Holds the first range of a target's backend until it is opened."""

    def __init__(self, target: FakeTarget) -> None:
        self._open, self._reached = threading.Event(), threading.Event()
        backend_of(target).on_range = self._wait

    def _wait(self, off: int, length: int, prefetch: bool) -> None:
        self._reached.set()
        assert self._open.wait(10)

    def reached(self) -> None:
        assert self._reached.wait(10)

    def open(self) -> None:
        self._open.set()


def _job(target: FakeTarget, unit: int, priority: Priority) -> Job:
    return Job(target, target.extent(unit, unit + 1), priority)


def _is_source(source: JobSource) -> JobSource:
    return source


def test_demand_overtakes_readahead_which_overtakes_prefetch(fetcher: Fetcher) -> None:
    target = make_target(10)
    gate = _Gate(target)
    fetcher.submit(_job(target, 0, Priority.DEMAND))
    gate.reached()
    fetcher.prefetch(target.source.backend, _is_source(_Prefetch(target, range(1, 3))))
    fetcher.submit(_job(target, 4, Priority.AHEAD))
    fetcher.submit(_job(target, 6, Priority.DEMAND))
    gate.open()
    target.wait_for(lambda: len(target.got) == 5)
    assert [off // UNIT for off, _, _ in backend_of(target).asked] == [0, 6, 4, 1, 2]
    assert [prefetch for *_, prefetch in backend_of(target).asked] == [False] * 2 + [True] * 3


def test_a_backend_that_hangs_holds_up_no_other(fetcher: Fetcher) -> None:
    stuck, other = make_target(), make_target()
    gate = _Gate(stuck)
    fetcher.submit(_job(stuck, 0, Priority.DEMAND))
    gate.reached()
    fetcher.submit(_job(other, 0, Priority.DEMAND))
    other.wait_for(lambda: 0 in other.got)
    gate.open()


def test_backends_of_one_host_share_its_link(fetcher: Fetcher) -> None:
    targets = [make_target() for _ in range(4)]
    backends = [backend_of(target) for target in targets]
    for backend, link in zip(backends, ("host:1", "host:1", "host:2", ""), strict=True):
        backend.link = link
    links = [fetcher.pace(backend).link for backend in backends]
    assert links[0] is links[1]
    assert len({id(link) for link in links}) == 3
    gate = _Gate(targets[0])
    fetcher.submit(Job(targets[0], targets[0].extent(0, 4), Priority.DEMAND))
    gate.reached()
    fetcher.submit(Job(targets[0], targets[0].extent(4, 6), Priority.AHEAD))
    assert (links[1].wanted, links[1].ahead) == (4 * UNIT, 2 * UNIT)
    gate.open()
    targets[0].wait_for(lambda: len(targets[0].got) == 6)
    fetcher.stop()
    assert (links[1].wanted, links[1].ahead) == (0, 0)


def test_all_of_a_prefetch_comes_when_nobody_reads(fetcher: Fetcher) -> None:
    target = make_target(50)
    fetcher.prefetch(target.source.backend, _is_source(_Prefetch(target, range(50))))
    target.wait_for(lambda: len(target.got) == 50)


def test_what_came_meanwhile_is_not_asked_for_again(fetcher: Fetcher) -> None:
    target = make_target(10)
    gate = _Gate(target)
    fetcher.submit(_job(target, 0, Priority.DEMAND))
    gate.reached()
    fetcher.submit(Job(target, target.extent(1, 4), Priority.AHEAD))
    target.taken.add(2)  # a reader came
    gate.open()
    target.wait_for(lambda: {1, 3} <= set(target.got))
    assert 2 not in target.got


def test_when_its_backend_goes_queued_demand_fails_at_once(fetcher: Fetcher) -> None:
    target = make_target(10)
    gate = _Gate(target)
    fetcher.submit(_job(target, 0, Priority.DEMAND))
    gate.reached()
    fetcher.submit(_job(target, 5, Priority.DEMAND))
    fetcher.submit(_job(target, 7, Priority.AHEAD))  # nobody waits for it
    fetcher.forget(target.source.backend)
    assert [(first, end, code) for first, end, code, _ in target.lost] == [(5, 6, errno.EIO)]
    gate.open()
    target.wait_for(lambda: 0 in target.got)


def test_when_another_image_has_the_blob_queued_demand_goes_there(fetcher: Fetcher) -> None:
    target, other = make_target(10), make_target(10)
    gate = _Gate(target)
    backend = target.source.backend
    fetcher.submit(_job(target, 0, Priority.DEMAND))
    gate.reached()
    fetcher.submit(_job(target, 5, Priority.DEMAND))
    target.source = other.source
    fetcher.forget(backend)
    target.wait_for(lambda: 5 in target.got)
    assert not target.lost
    gate.open()


def test_after_stop_demand_fails_at_once(fetcher: Fetcher, trims: list[int]) -> None:
    target = make_target(10)
    fetcher.submit(_job(target, 0, Priority.DEMAND))
    target.wait_for(lambda: 0 in target.got)
    queue = fetcher._queue(target.source.backend)
    fetcher.stop()
    queue.submit(_job(target, 1, Priority.DEMAND))
    assert target.lost[0][:3] == (1, 2, errno.EIO)
    assert trims  # the last worker gave the memory of fills back


def test_a_system_without_threads_is_one_for_a_while(
    fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that could not be started is none, and takes nobody's place."""
    target = make_target(4)

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        for unit in range(3):
            with pytest.raises(RuntimeError):
                fetcher.submit(Job(target, target.extent(unit, unit + 1), Priority.DEMAND))
    fetcher.submit(Job(target, target.extent(3, 4), Priority.DEMAND))
    target.wait_for(lambda: len(target.got) == 4)
