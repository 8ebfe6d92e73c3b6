"""A reader in a loop is no flood: failures are believed for a while, and lines are left out."""

from __future__ import annotations

import errno
import logging
from itertools import pairwise

import pytest

from nydus_fscache.fetch.failures import FREE, LONGEST_PAUSE_S, Failures
from nydus_fscache.log import Sparingly


def _asks(seconds: float, step: float = 0.01) -> list[float]:
    """When a reader in a loop has its unit asked for, which fails each time at once."""
    failures, asked, now = Failures(), [], 1000.0
    while now < 1000 + seconds:
        if not failures.pending(7, now):
            asked.append(now - 1000)
            failures.note(7, errno.EIO, now, 0.001)
        now += step
    return asked


def test_the_first_failures_are_repeated_at_once_and_then_less_and_less_often() -> None:
    asked = _asks(60)
    assert len(asked) < FREE + 15
    pauses = [after - before for before, after in pairwise(asked)]
    assert max(pauses[: FREE - 1]) < 0.02
    assert pauses[FREE:] == sorted(pauses[FREE:])
    assert max(pauses) <= LONGEST_PAUSE_S + 0.02, "a repaired blob is read within seconds"


def test_a_failure_that_took_long_is_believed_at_once() -> None:
    """The kernel reads the page alone after its readahead failed: not another minute."""
    failures = Failures()
    failures.note(7, errno.ENOSPC, 1000.0, 60.0)
    assert failures.pending(7, 1000.1) == errno.ENOSPC
    assert failures.pending(8, 1000.1) == 0
    assert failures.pending(7, 1010.0) == 0


def test_success_is_a_new_beginning() -> None:
    failures = Failures()
    for _ in range(FREE + 5):
        failures.note(7, errno.EIO, 1000.0, 0.0)
    failures.forget(7)
    failures.note(7, errno.EIO, 1000.0, 0.0)
    assert failures.pending(7, 1000.0) == 0


def test_lines_like_each_other_are_left_out_and_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("nydus_fscache.log.time.monotonic", lambda: now[0])
    sparingly = Sparingly(logging.getLogger("test"))
    for i in range(10_000):
        sparingly(logging.ERROR, "blob", "chunk %d is bad", i)
    sparingly(logging.ERROR, "another", "fine with %s", "me")
    assert len(caplog.records) == Sparingly.BURST + 1
    now[0] += 2 * Sparingly.EVERY_S
    sparingly(logging.ERROR, "blob", "chunk %d is bad", 5)
    last = caplog.records[-1].getMessage()
    assert last == f"chunk 5 is bad ({10_000 - Sparingly.BURST} like it left out)"
