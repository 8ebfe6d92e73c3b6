"""Reads by size and time, in nydusd's classes."""

from __future__ import annotations

import pytest

from nydus_fscache.fetch.read_times import ReadTimes


@pytest.mark.parametrize(
    ("size", "seconds", "cell"),
    [
        (0, 0.0, [0, 0]), (1023, 0.001, [0, 0]), (1024, 0.0011, [1, 1]), (4095, 0.02, [1, 1]),
        (4096, 0.05, [2, 2]), (16384, 0.1, [3, 3]), (65536, 0.5, [4, 4]), (131072, 1.0, [5, 5]),
        (524288, 2.0, [6, 6]), (1048575, 2.1, [6, 7]), (1048576, 100.0, [7, 7]),
    ],
)  # fmt: skip
def test_classes(size: int, seconds: float, cell: list[int]) -> None:
    times = ReadTimes()
    times.record(size, seconds, prefetch=False)
    found = times.document()
    assert found["classes"] == [[*cell, 1]]
    assert found["ms"] == round(seconds * 1000)
    assert found["prefetches"] == found["began"] == found["ended"] == 0


def test_prefetch_is_counted_besides() -> None:
    times = ReadTimes()
    times.record(1000, 0.5, prefetch=True)
    times.record(2000, 0.25, prefetch=True)
    times.record(4000, 1.0, prefetch=False)
    found = times.document()
    assert (found["prefetched"], found["prefetches"], found["prefetch_ms"]) == (3000, 2, 750)
    assert found["ms"] == 1750
    assert found["ended"] - found["began"] >= 0.5
