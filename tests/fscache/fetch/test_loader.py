"""What is asked for besides the units that a reader waits for."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from nydus_fscache.cache.presence import PageMap, shared_map
from nydus_fscache.fetch.extents import UnitTable
from nydus_fscache.fetch.failures import Failures
from nydus_fscache.fetch.job import KIB, Job, Priority
from nydus_fscache.fetch.loader import Loader
from nydus_fscache.fetch.pace import Pace
from nydus_fscache.fetch.units import State, UnitStates

FILES, SIZE = 400, 8 * KIB


class _Rig:
    """A blob of small files, of which nothing comes until it is told."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.expected: list[int] = []
        self.marks: list[int] = []
        self.read: list[int] = []
        self.room = 512 * KIB
        self.is_prefetching = False
        self.pace = Pace()
        chunks: Any = SimpleNamespace(
            nunits=FILES, flat_size=FILES * SIZE, digest_source="none",
            units_of=lambda off, length: range(off // SIZE, (off + length - 1) // SIZE + 1),
            unit_range=lambda unit: (unit * SIZE, (unit + 1) * SIZE),
        )  # fmt: skip
        self.states = UnitStates(chunks)
        target: Any = SimpleNamespace(source=SimpleNamespace(backend=None))
        fetcher: Any = SimpleNamespace(
            spare=lambda backend: self.room, pace=lambda backend: self.pace,
            loads_everything=lambda backend: False,
            is_prefetching=lambda backend: self.is_prefetching, submit=self.jobs.append,
        )  # fmt: skip
        programs: Any = SimpleNamespace(
            expect=self.expected.append, is_program=lambda unit: False,
            arrived=lambda first, end: None, touched=lambda off: None,
        )  # fmt: skip
        table = UnitTable([SIZE * unit for unit in range(FILES)], [SIZE] * FILES)
        self.loader = Loader(
            target, chunks, table, self.states, Failures(), programs, fetcher,
            threading.Condition(), self.marks.append,
        )  # fmt: skip
        self.loader.was_read = self.read.extend
        self.asked = PageMap(FILES * SIZE, shared_map(FILES * SIZE))
        self.loader.learn_from(self.asked)

    def units(self, priority: Priority) -> set[int]:
        jobs = [job for job in self.jobs if job.priority is priority]
        return {unit for job in jobs for unit in range(job.extent.unit, job.extent.end)}

    def demand(self, unit: int) -> None:
        self.asked.set(*self.states.pages(unit))
        self.loader.demand(unit * SIZE, [unit])

    def come(self, *units: int) -> None:
        for unit in units:
            self.states.found(unit)


@pytest.fixture
def rig() -> _Rig:
    return _Rig()


def test_guesses_go_on_while_a_reader_waits_for_one_of_them(rig: _Rig) -> None:
    rig.demand(200)
    assert rig.units(Priority.DEMAND) == {200}
    first = rig.units(Priority.AHEAD)
    assert first
    rig.come(200, *first)
    rig.loader.joined(max(first))
    more = rig.units(Priority.AHEAD) - first
    assert more
    assert min(more) < min(first) or max(more) > max(first)
    rig.jobs.clear()
    rig.come(*more)
    rig.is_prefetching = True  # somebody knows better
    rig.loader.joined(max(more))
    rig.is_prefetching, rig.room = False, 0  # the link is busy
    rig.loader.joined(max(more))
    assert not rig.jobs


def test_nothing_is_guessed_until_it_is_known_which_files_there_are(rig: _Rig) -> None:
    rig.loader.expect_kinds()
    rig.demand(200)
    assert rig.units(Priority.DEMAND) == {200}
    assert not rig.units(Priority.AHEAD)
    rig.loader.know_kinds([2 + unit % 2 for unit in range(FILES)])
    guessed = rig.units(Priority.AHEAD)
    assert guessed
    assert not {unit % 2 for unit in guessed} - {0}
    rig.demand(301)
    assert {unit % 2 for unit in rig.units(Priority.AHEAD) - guessed} == {1}


def test_guesses_are_made_without_if_it_is_not_known_after_all(rig: _Rig) -> None:
    rig.loader.expect_kinds()
    rig.demand(200)
    rig.loader.know_kinds(())
    assert rig.units(Priority.AHEAD)


def test_files_that_are_named_come_as_long_as_they_may_be_unread(rig: _Rig) -> None:
    rig.pace.link.rate = 10e6
    rig.demand(0)
    rig.jobs.clear()
    rig.loader.load_named([390, 380, 300])
    assert rig.units(Priority.AHEAD) == {300, 380, 390}
    assert not rig.units(Priority.DEMAND)
    assert {300, 380, 390} <= set(rig.expected)
    rig.jobs.clear()
    rig.loader.load_named(range(100, 399))
    asked = rig.units(Priority.AHEAD)
    assert asked < set(range(100, 399))
    assert len(asked) * SIZE <= rig.pace.may_waste(id(rig.loader))
    rig.jobs.clear()
    rig.loader.load_named([99])
    assert not rig.jobs


def test_what_was_guessed_and_is_read_is_told_once_to_who_follows_it(rig: _Rig) -> None:
    rig.demand(200)
    guessed = sorted(rig.units(Priority.AHEAD))
    assert {unit * SIZE for unit in guessed} <= set(rig.marks)
    rig.come(200, *guessed)
    rig.loader.passed(guessed[3] * SIZE)  # a mark is crossed
    assert rig.read == [guessed[3]]
    for unit in guessed[:3]:
        rig.asked.set(*rig.states.pages(unit))
    rig.demand(399)
    assert set(rig.read) == set(guessed[:4])
    rig.read.clear()
    rig.demand(1)
    assert not set(rig.read) & set(guessed[:3])


def test_a_wait_for_what_nobody_asked_ahead_of_is_no_join(rig: _Rig) -> None:
    rig.demand(5)
    assert rig.states[5] == State.DEMANDED
    rig.states.join(5)
    assert rig.states[5] == State.DEMANDED
