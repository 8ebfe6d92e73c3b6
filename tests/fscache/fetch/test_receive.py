"""A range from its backend into its target: units as they come, and each kind of trouble."""

from __future__ import annotations

import errno
import threading

import pytest
from fetch_kit import UNIT, FakeBackend, FakeTarget, backend_of, make_target

from nydus_fscache.errors import BackendError
from nydus_fscache.fetch.job import Source
from nydus_fscache.fetch.pace import Pace
from nydus_fscache.fetch.receive import Receiver


def _run(target: FakeTarget, first: int = 0, end: int = 10) -> threading.Event:
    """Was the disk full?"""
    disk_full = threading.Event()
    Receiver(disk_full).run(target, target.extent(first, end), Pace())
    return disk_full


@pytest.mark.parametrize("piece", [1, 7, UNIT, UNIT + 1, 1 << 20])
def test_units_are_filled_whatever_the_pieces_they_come_in(piece: int) -> None:
    target = make_target(10, piece=piece)
    _run(target, 2, 9)
    assert target.got == {u: bytes([u]) * UNIT for u in range(2, 9)}
    assert backend_of(target).asked == [(2 * UNIT, 7 * UNIT, False)]
    assert not target.lost


def test_units_are_filled_before_the_rest_has_come() -> None:
    """The reader of the first one does not wait for the range."""
    target = make_target(10, piece=UNIT)
    seen: list[int] = []
    fill = target.fill

    def watched(first: int, count: int, stored: memoryview, off: int) -> object:
        seen.append(count)
        return fill(first, count, stored, off)

    target.fill = watched  # type: ignore[method-assign, assignment]
    _run(target)
    assert seen == [1] * 10


def test_a_unit_that_does_not_verify_costs_its_own_readers_only() -> None:
    target = make_target(10, bad=4)
    _run(target)
    assert sorted(target.got) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert [(first, end, code) for first, end, code, _ in target.lost] == [(4, 5, errno.EIO)]
    assert "chunk 4" in target.lost[0][3]
    assert "does not match its digest" in target.lost[0][3]


def test_wrong_bytes_of_a_mirror_are_asked_for_again_elsewhere() -> None:
    target = make_target(10, bad=4)
    backend = backend_of(target)
    backend.corrupt = True
    good = b"".join(bytes([u]) * UNIT for u in range(10))
    backend.repaired = lambda: setattr(backend, "data", good)
    _run(target)
    assert len(target.got) == 10
    assert not target.lost
    assert [off for off, _, _ in backend.asked] == [0, 4 * UNIT]


def test_a_cut_answer_costs_what_did_not_come() -> None:
    target = make_target(10, piece=UNIT)
    backend = backend_of(target)
    backend.data = backend.data[: 3 * UNIT + 10]
    _run(target)
    assert sorted(target.got) == [0, 1, 2]
    assert [(first, end, code) for first, end, code, _ in target.lost] == [(3, 10, errno.EIO)]


def test_when_its_image_is_given_up_in_the_middle_another_backend_goes_on() -> None:
    target = make_target(10, piece=UNIT)
    other = FakeBackend(backend_of(target).data)

    def given_up(off: int, length: int, prefetch: bool) -> None:
        target.source = Source(other, "blob")
        raise BackendError("closed")

    backend_of(target).on_range = given_up
    _run(target)
    assert len(target.got) == 10
    assert other.asked == [(0, 10 * UNIT, False)]


@pytest.mark.parametrize(
    ("error", "told", "full"),
    [
        (errno.ENOSPC, errno.ENOSPC, True),
        (errno.EDQUOT, errno.ENOSPC, True),
        (errno.EIO, errno.EIO, False),
        (errno.ENOENT, errno.EIO, False),
    ],
)
def test_a_write_that_fails_is_told_with_its_reason(error: int, told: int, full: bool) -> None:
    target = make_target(10)
    target.error = error
    assert _run(target).is_set() == full
    assert [(first, end, code) for first, end, code, _ in target.lost] == [(0, 10, told)]
    assert "writing the cache file" in target.lost[0][3]


def test_a_fault_of_ours_reaches_the_reader_as_an_error() -> None:
    target = make_target(10)

    def broken(off: int, length: int, prefetch: bool) -> None:
        raise ValueError("a bug")

    backend_of(target).on_range = broken
    _run(target)
    assert target.lost[0][:3] == (0, 10, errno.EIO)


def test_what_the_node_has_is_not_asked_for() -> None:
    target = make_target(200)
    target.here = set(range(100))
    _run(target, 0, 200)
    assert sorted(target.got) == list(range(100, 200))
    assert backend_of(target).asked == [(100 * UNIT, 100 * UNIT, False)]
