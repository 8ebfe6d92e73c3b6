"""What comes along with a miss while the link would be idle, and where it ends."""

from __future__ import annotations

import os
from pathlib import Path

from nydus_fscache.core.files import kind_of
from nydus_fscache.fetch.extents import UnitTable
from nydus_fscache.fetch.neighbours import LIBRARIES, UNREAD_RATIO, Neighbours
from nydus_fscache.fetch.pace import MAX_WASTE, Pace
from nydus_fscache.fetch.programs import Programs
from nydus_fscache.files import OpenFile
from nydus_fscache.image.elf import Needs

KIB, MIB = 1 << 10, 1 << 20


def _table(sizes: list[int], full: set[int] | None = None) -> UnitTable:
    offsets, at = [], 0
    for size in sizes:
        offsets.append(at)
        at += size
    ulen = [MIB if unit in (full or set()) else 5000 for unit in range(len(sizes))]
    return UnitTable(offsets, sizes, ulen if full else None)


def test_small_files_bring_their_neighbours_and_reach_over_large_ones() -> None:
    table = _table([2 * KIB] * 20 + [400 * KIB] * 3 + [2 * KIB] * 20, {20, 21})
    chosen = Neighbours(table, lambda unit: unit != 12).choose(10, 11, 40 * KIB, is_program=False)
    assert chosen[:3] == [11, 13, 14]
    assert not {12, 20, 21, 22} & set(chosen)
    assert {9, 8, 23} <= set(chosen)
    assert sum(table.clen[u] for u in chosen) <= 40 * KIB


def test_neighbours_of_another_kind_stay_where_kinds_are_known() -> None:
    table = _table([2 * KIB] * 60)
    neighbours = Neighbours(table, lambda unit: True)
    neighbours.kinds = [1 + unit % 2 for unit in range(60)]
    chosen = neighbours.choose(30, 31, 40 * KIB, is_program=False)
    assert {32, 34, 28} <= set(chosen)
    assert all(unit % 2 == 0 for unit in chosen)
    far = Neighbours(_table([2 * KIB] * 3000), lambda unit: True)
    far.kinds = [1, *[2] * 2000, *[1] * 999]
    assert far.choose(0, 1, 40 * KIB, is_program=False) == []


def test_around_a_library_less_is_guessed() -> None:
    table = _table([20 * KIB] * 100)
    neighbours = Neighbours(table, lambda unit: True)
    neighbours.kinds = [kind_of(b"libz.so.1")] * 100
    chosen = neighbours.choose(50, 51, 2 * MIB, is_program=False)
    assert 0 < len(chosen) * 20 * KIB <= LIBRARIES


def test_a_part_of_a_program_brings_its_other_parts_and_of_data_nothing() -> None:
    table = _table([300 * KIB] * 30, set(range(9)) | set(range(10, 29)))
    neighbours = Neighbours(table, lambda unit: True)
    assert table.file_of(4) == (0, 10)
    assert neighbours.choose(4, 5, 2 * MIB, is_program=False) == []
    chosen = neighbours.choose(4, 5, 2 * MIB, is_program=True)
    assert chosen[0] == 5
    assert set(chosen) <= set(range(10))


def test_of_a_large_file_that_nobody_knows_its_end_comes_with_its_start() -> None:
    table = _table([300 * KIB] * 30, set(range(9)) | set(range(10, 29)))
    neighbours = Neighbours(table, lambda unit: unit not in (0, 1))
    assert neighbours.choose(0, 2, MIB, is_program=False) == [9, 2, 3]
    assert neighbours.choose(3, 4, MIB, is_program=False) == []  # read somewhere: by chance


def test_a_program_that_is_missed_again_brings_twice_as_much_within_what_is_allowed() -> None:
    table = _table([100 * KIB] * 400, set(range(399)))
    neighbours = Neighbours(table, lambda unit: True)

    def parts() -> int:
        return len(neighbours.choose(200, 201, MIB, is_program=True))

    assert [parts() for _ in range(3)] == [10, 20, 40]
    neighbours.allow(3 * MIB)
    assert parts() == 30
    assert [parts() for _ in range(100)][-1] == 30


def test_guesses_end_while_they_are_not_read() -> None:
    """At most twice the bytes that are read, or as much as the link brings at once."""
    table = _table([100 * KIB] * 1000)
    neighbours, asked = Neighbours(table, lambda unit: True), bytearray(4096)
    pages = {unit: (unit, unit + 1) for unit in range(1000)}
    neighbours.guessed(range(10), pages.__getitem__)
    assert neighbours.allow(2 * MIB) == 2 * MIB - 1000 * KIB
    neighbours.guessed(range(10, 30), pages.__getitem__)
    assert neighbours.allow(2 * MIB) == 0
    for unit in range(30):
        asked[unit >> 3] |= 1 << (unit & 7)
    with memoryview(asked) as view:
        neighbours.learn(view, lambda unit: False)
    assert neighbours.allow(2 * MIB) == int(3000 * KIB * UNREAD_RATIO)


def test_a_fast_link_may_bring_more_that_nobody_reads_than_a_slow_one() -> None:
    def pace_of(rate: int) -> Pace:
        pace = Pace()
        pace.link.first_byte(0.02, 0.0)
        for step in range(1, 60):
            pace.link.received(rate // 20, step / 20)
        return pace

    assert pace_of(2 * MIB).may_waste() == MIB
    assert 4 * MIB < pace_of(50 * MIB).may_waste() < 6 * MIB
    assert pace_of(1000 * MIB).may_waste() == MAX_WASTE


class _Blob:
    """One file a unit, of 64 KiB, on disk."""

    def __init__(self, base: Path, files: list[bytes]) -> None:
        self.fd = os.open(base / "flat", os.O_RDWR | os.O_CREAT)
        for unit, data in enumerate(files):
            os.pwrite(self.fd, data, unit << 16)
        self.here: set[int] = set()
        self.marks: list[int] = []
        self.found: list[Needs] = []
        self.programs = Programs(
            _table([KIB] * len(files)), self, OpenFile(self.fd), self.has, self.marks.append
        )  # type: ignore[arg-type]
        self.programs.found = self.found.append

    def has(self, off: int, length: int) -> bool:
        return set(range(off >> 16, ((off + length - 1) >> 16) + 1)) <= self.here

    def units_of(self, off: int, length: int) -> range:
        return range(off >> 16, ((off + length - 1) >> 16) + 1)

    def unit_range(self, unit: int) -> tuple[int, int]:
        return unit << 16, (unit + 1) << 16

    def come(self, *units: int) -> None:
        for unit in units:
            self.here.add(unit)
            self.programs.arrived(unit, unit + 1)


SCRIPT = b"#!/bin/sh\n" + bytes(300)


def test_a_script_that_a_reader_waits_for_is_followed_when_it_comes(tmp_path: Path) -> None:
    blob = _Blob(tmp_path, [b"text", SCRIPT, SCRIPT])
    blob.programs.expect(1)
    blob.come(0, 1)
    assert [needs.paths for needs in blob.found] == [["/bin/sh"]]
    blob.come(1)
    assert len(blob.found) == 1
    os.close(blob.fd)


def test_one_that_came_along_is_followed_when_it_is_touched(tmp_path: Path) -> None:
    blob = _Blob(tmp_path, [b"text", SCRIPT, SCRIPT])
    blob.come(0, 1, 2)
    assert blob.marks == [1 << 16, 2 << 16]
    assert not blob.found
    blob.programs.touched(2 << 16)
    assert len(blob.found) == 1
    blob.programs.touched(2 << 16)
    assert len(blob.found) == 1
    os.close(blob.fd)


def test_after_the_end_of_its_file_nothing_is_looked_at(tmp_path: Path) -> None:
    blob = _Blob(tmp_path, [SCRIPT])
    blob.programs._file.close()
    blob.programs.expect(0)
    blob.come(0)
    assert not blob.found
    os.close(blob.fd)
