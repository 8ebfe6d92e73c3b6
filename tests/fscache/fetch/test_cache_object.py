"""A cache object's promises: one fetch a unit, errors that end waits, and writes that are lost."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from object_kit import UNIT, Rig, cache_object

from nydus_fscache.errors import BackendError
from nydus_fscache.fetch.job import Extent


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with cache_object(tmp_path) as rig:
        yield rig


@pytest.fixture
def sync(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """``sync(error)``: from now on fdatasync fails with it; 0: it works.  Returns its calls."""
    calls: list[int] = []
    state = {"error": 0}
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        calls.append(fd)
        if state["error"]:
            raise OSError(state["error"], os.strerror(state["error"]))
        real(fd)

    monkeypatch.setattr("nydus_fscache.fetch.record.os.fdatasync", fdatasync)

    def set_error(error: int) -> list[int]:
        state["error"] = error
        return calls

    return set_error


def _expect(rig: Rig, *units: int) -> None:
    for unit in units:
        assert os.pread(rig.fd, UNIT, unit * UNIT) == bytes([unit + 1]) * UNIT


def test_many_readers_of_a_unit_are_one_request(rig: Rig) -> None:
    gate = threading.Event()
    rig.backend.on_range = lambda off, length, prefetch: gate.wait(10)
    for _ in range(20):
        rig.read(3)
    gate.set()
    rig.wait_for(3)
    _expect(rig, 3)
    assert len(rig.backend.asked) == 1


def test_a_unit_that_failed_is_asked_for_again_by_the_next_reader(rig: Rig) -> None:
    def broken(off: int, length: int, prefetch: bool) -> None:
        rig.backend.on_range = lambda off, length, prefetch: None
        raise BackendError("not now")

    rig.backend.on_range = broken
    rig.read(3)
    while not rig.object.counters.errors:
        time.sleep(0.005)
    rig.read(3)
    rig.wait_for(3)
    assert rig.object.counters.last_error == "not now"


def test_what_was_not_synced_is_not_recorded_and_missing_after_a_failed_sync(
    rig: Rig, sync: Callable[[int], list[int]]
) -> None:
    """The kernel says once that it could not write pages, and may drop them from then on."""
    for unit in (1, 2):
        rig.read(unit)
    rig.wait_for(1, 2)
    rig.object.persist()
    for unit in (5, 6):
        rig.read(unit)
    rig.wait_for(5, 6)
    sync(errno.ENOSPC)
    with pytest.raises(OSError, match="space"):
        rig.object.persist()
    assert [u for u in range(16) if rig.object.is_present(u)] == [1, 2]
    pages = UNIT // 4096
    assert rig.object.pages.all_set(pages, 3 * pages)
    assert not rig.object.pages.any_set(5 * pages, 7 * pages)
    assert "writing back" in rig.object.counters.last_error
    assert rig.fetcher.disk_full.is_set(), "room is made, if there is something to evict"

    # readers get the error for a while: nothing is asked for
    asked = len(rig.backend.asked)
    rig.read(5)
    assert len(rig.backend.asked) == asked


def test_once_the_disk_takes_writes_again_lost_units_come_again(
    rig: Rig, sync: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = sync(errno.EIO)
    rig.read(5)
    rig.wait_for(5)
    with pytest.raises(OSError, match="Input/output"):
        rig.object.persist()
    sync(0)
    calls.clear()
    monkeypatch.setattr("nydus_fscache.fetch.failures.SLOW_PAUSE_S", 0.0)
    rig.object._failures.forget(5)
    rig.read(5)
    rig.wait_for(5)
    until = time.monotonic() + 10
    while not calls and time.monotonic() < until:
        time.sleep(0.005)
    assert calls, "after a failure each unit is synced as it comes"
    _expect(rig, 5)


def test_a_write_under_way_during_a_failed_sync_is_lost_with_the_others(
    rig: Rig, sync: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pages may be among those that could not be written, and the error is told once."""
    sync(errno.EIO)
    rig.read(1)
    rig.wait_for(1)
    fill = rig.core.fill

    def slow_fill(*args: Any) -> Any:
        done = fill(*args)  # written, and not told yet
        with pytest.raises(OSError, match="Input/output"):
            rig.object.persist()
        return done

    monkeypatch.setattr(rig.core, "fill", slow_fill)
    rig.read(7)
    until = time.monotonic() + 10
    while rig.object.counters.errors < 2 and time.monotonic() < until:
        time.sleep(0.005)
    assert not rig.object.is_present(1)
    assert not rig.object.is_present(7)


def test_all_is_there_for_good_only_when_it_is_on_record(
    rig: Rig, sync: Callable[[int], list[int]]
) -> None:
    """Only then the kernel may read without asking; the last unit is no sooner here than synced."""
    calls = sync(errno.EIO)
    for unit in range(16):
        rig.read(unit)
    until = time.monotonic() + 10
    while not calls and time.monotonic() < until:
        time.sleep(0.005)
    assert calls, "the last unit of all has a sync"
    while rig.object.complete and time.monotonic() < until:
        time.sleep(0.005)
    assert not rig.object.complete
    assert not rig.settled
    sync(0)
    for unit in range(16):
        rig.object._failures.forget(unit)
        rig.read(unit)
    rig.wait_for(*range(16))
    while not rig.settled and time.monotonic() < until:
        time.sleep(0.005)
    assert rig.object.is_settled
    assert rig.settled


def test_a_sync_that_fails_at_the_end_leaves_nothing_announced(
    rig: Rig, sync: Callable[[int], list[int]]
) -> None:
    """The page map may be a successor's."""
    rig.read(3)
    rig.wait_for(3)
    with_fd = os.dup(rig.fd)
    memory = rig.object.pages
    seen: list[bool] = []
    close = memory.close
    memory.close = lambda: (seen.append(memory.any_set(0, 256)), close())[1]  # type: ignore[method-assign]
    sync(errno.EIO)
    rig.object.close(deadline=time.monotonic() + 5)
    os.close(with_fd)
    assert seen == [False]


def test_a_late_copy_writes_into_no_other_file(rig: Rig, tmp_path: Path) -> None:
    """Its object was closed after its deadline, and the descriptor's number is another's."""
    gate, reached = threading.Event(), threading.Event()

    def stuck(off: int, length: int, prefetch: bool) -> None:
        reached.set()
        gate.wait(10)

    rig.backend.on_range = stuck
    rig.read(3)
    assert reached.wait(10)
    source = os.open(tmp_path / "source", os.O_RDWR | os.O_CREAT)
    os.pwrite(source, b"X" * UNIT, 0)

    def take_closed(owner: object, lacking: dict[int, range], take: Callable[..., bool]) -> None:
        for unit, chunks in lacking.items():
            for chunk in chunks:
                take(unit, chunk, source, 0)

    copies: Any = SimpleNamespace(
        find=lambda *_: None, take_closed=take_closed,
        closed=lambda *_, **__: None, recorded=lambda *_: None,
    )  # fmt: skip
    rig.object.share(copies)
    rig.object.close(deadline=time.monotonic() + 0.05)
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    os.pwrite(other, b"N" * UNIT * 16, 0)
    os.dup2(other, rig.fd)
    with pytest.raises(OSError, match="closed"):
        rig.object.reuse(Extent(3, 4, *rig.object.stored(3)))
    gate.set()
    rig.fetcher.stop()
    assert (tmp_path / "other").read_bytes() == b"N" * UNIT * 16
    os.close(source)
    os.close(other)
