"""Units by columns and states: memory and answers that do not grow with what was asked before."""

from __future__ import annotations

import random
from array import array
from types import SimpleNamespace
from typing import Any, cast

from nydus_fscache.cache.presence import PageMap
from nydus_fscache.core.units import unit_columns, units_present
from nydus_fscache.fetch.extents import UnitTable
from nydus_fscache.fetch.units import Chunks, UnitStates
from rafs_v6._codec import ffi, lib

UNIT = 8192


def _chunks(count: int, ranges: list[int]) -> Chunks:
    def unit_range(unit: int) -> tuple[int, int]:
        ranges.append(unit)
        return UNIT * unit, UNIT * (unit + 1)

    chunks = SimpleNamespace(nunits=count, flat_size=UNIT * count, unit_range=unit_range)
    return cast(Chunks, chunks)


def test_bytes_that_are_there_are_counted_when_they_come() -> None:
    asked: list[int] = []
    states = UnitStates(_chunks(1000, asked))
    assert states.bytes_present() == 0
    for unit in (3, 5, 3):
        states.found(unit)
    states.lost(5)
    states.lost(6)
    assert (states.bytes_present(), states.missing) == (UNIT, 999)
    assert len(asked) == 3, "one look for each that changed, none for an answer"
    for unit in range(1000):
        states.found(unit)
    assert (states.bytes_present(), states.missing) == (1000 * UNIT, 0)


def test_columns_of_units_are_arrays() -> None:
    units = ffi.new("struct rafs_unit[3]")
    for number in range(3):
        units[number].coff, units[number].clen = number << 40, number + 1
        units[number].ulen = 65536 if number != 1 else 100
    columns = unit_columns(SimpleNamespace(units=units), 3)
    expected: list[Any] = [[0, 1 << 40, 2 << 40], [1, 2, 3], [65536, 100, 65536]]
    assert [c.tolist() for c in columns] == expected
    assert all(isinstance(c, array) and c.itemsize <= 8 for c in columns)
    assert UnitTable(*columns).is_full == bytes([1, 0, 1])
    assert UnitTable(columns[0], columns[1], array("I", [100, 200, 200])).is_full == bytes(3)
    assert [len(c) for c in unit_columns(None, 0)] == [0, 0, 0]


def test_units_that_are_there_are_found_in_one_call() -> None:
    """As the page map says of each of them; the last one ends within a page."""
    count, unit, size = 100, 5 * 4096, 99 * 5 * 4096 + 100
    chunks, units = ffi.new("struct rafs_chunk[]", count), ffi.new("struct rafs_unit[]", count)
    blob = ffi.new("struct rafs_blob *")
    assert lib.rafs_identity_map(size, unit, chunks, units, blob) == 0
    dice = random.Random(1)
    pages = PageMap(size)
    ranges = [(5 * n, 5 * n + 5 if n < 99 else 5 * n + 1) for n in range(count)]
    for first, end in ranges:
        whole = dice.random() < 0.5
        pages.set(first if whole or end - first == 1 else first + 1, end)
    expected = bytes(pages.all_set(*pages_of) for pages_of in ranges)
    assert 20 < sum(expected) < 90
    assert units_present(blob, count, size, pages.memory) == expected
    assert units_present(blob, 0, 0, pages.memory) == b""
