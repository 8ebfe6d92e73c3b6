"""Which units go into one request, and how far ahead of whom."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from nydus_fscache.fetch.extents import GAP, UnitTable, Window
from nydus_fscache.fetch.job import MAX_REQUEST, Extent
from nydus_fscache.fetch.pace import MAX_WINDOW, Link, Pace
from nydus_fscache.fetch.plan import Planner

MIB = 1 << 20


def _table(sizes: list[int], gap: int = 0) -> UnitTable:
    offsets, at = [], 0
    for size in sizes:
        offsets.append(at)
        at += size + gap
    return UnitTable(offsets, sizes)


def _ask(
    planner: Planner, table: UnitTable, unit: int, pace: Pace | None = None
) -> tuple[Window, Extent]:
    """A reader misses the unit: its window, and the request that comes of it."""
    window = planner.window(unit, unit + 1, pace or Pace())
    return window, table.extend(table.merge([unit])[0], window, lambda unit: True)


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 3 * MIB), min_size=1, max_size=60),
    gap=st.integers(0, 2 * GAP),
    data=st.data(),
)
def test_merged_requests_hold_each_wanted_unit_once(
    sizes: list[int], gap: int, data: st.DataObject
) -> None:
    table = _table(sizes, gap)
    wanted = sorted(data.draw(st.sets(st.integers(0, len(sizes) - 1), min_size=1)))
    extents = table.merge(wanted)
    assert [u for e in extents for u in range(e.unit, e.end)] == wanted
    for extent in extents:
        assert extent.off == table.stored(extent.unit)[0]
        assert extent.end_off == table.stored(extent.end - 1)[1]
        assert extent.end_off - extent.off <= MAX_REQUEST


def test_random_reader_of_large_chunks_gets_one() -> None:
    planner = Planner(_table([400_000] * 1000))
    for unit in (500, 3, 900, 250):
        window = planner.window(unit, unit + 1, Pace())
        assert (window.before, window.behind) == (0, 0)


def test_small_units_bring_their_neighbours() -> None:
    table = _table([2000] * 1000)
    _, extent = _ask(Planner(table), table, 100)
    assert 15 <= extent.end - 100 <= 50
    assert 1 <= 100 - extent.unit <= 10


def test_neighbours_come_as_far_as_those_before_were_read() -> None:
    asked: set[int] = set()
    planner = Planner(_table([2000] * 1000), asked.__contains__, lambda unit: 80 <= unit < 100)
    unread = planner.window(110, 111, Pace()).behind
    asked.update(range(80, 100))
    assert planner.window(120, 121, Pace()).behind > 4 * unread


def test_window_of_a_sequential_reader_grows_to_the_limit() -> None:
    asked: set[int] = set()
    table = _table([200_000] * 2000)
    planner = Planner(table, asked.__contains__)
    pace = Pace()
    pace.link.latency_s, pace.link.rate = 0.1, 1e9
    unit, windows = 0, []
    for _ in range(12):
        asked.add(unit)
        window, extent = _ask(planner, table, unit, pace)
        planner.readahead.follow(unit, extent.end)
        windows.append(window.behind)
        asked.update(range(unit, extent.end))
        unit = extent.end
    assert windows[0] == 0
    assert windows == sorted(windows)
    assert windows[-1] == MAX_WINDOW


def test_who_did_not_read_what_came_along_gets_no_window() -> None:
    asked = {0}
    planner = Planner(_table([100_000] * 99), asked.__contains__)
    planner.window(0, 1, Pace())
    planner.readahead.follow(0, 20)
    asked.add(20)
    assert planner.window(20, 21, Pace()).behind == 0


def test_window_ends_with_the_file_until_a_reader_goes_from_file_to_file() -> None:
    """Files of four full chunks and a tail."""
    ulen = ([1 << 20] * 4 + [5000]) * 30
    table = UnitTable([300_000 * u for u in range(150)], [300_000] * 150, ulen)
    planner = Planner(table)
    unit, ends = 0, []
    while unit < 100:
        _, extent = _ask(planner, table, unit)
        planner.readahead.follow(unit, extent.end)
        ends.append(extent.end)
        unit = extent.end
    assert ends[:2] == [1, 5]
    assert any(end % 5 for end in ends[2:])


def test_a_file_of_a_few_units_comes_whole_while_such_files_are_read() -> None:
    asked: set[int] = set()
    ulen = ([1 << 20] * 9 + [5000]) * 50
    table = UnitTable([300_000 * u for u in range(500)], [300_000] * 500, ulen)
    planner = Planner(table, asked.__contains__)
    assert planner.file(12) == (10, 20)
    assert planner.file(13) is None  # it is on its way
    for unit in (20, 30):
        planner.file(unit)
    assert planner.file(40) is None  # nobody reads them
    asked.update(range(10, 30))
    assert planner.file(41) == (40, 50)
    ulen = [1 << 20] * 499 + [1]
    huge = Planner(UnitTable([300_000 * u for u in range(500)], [300_000] * 500, ulen))
    assert huge.file(250) is None


def test_window_is_what_latency_and_bandwidth_can_use() -> None:
    pace = Pace()
    pace.link.latency_s, pace.link.rate = 0.02, 100e6
    assert pace.window() == 4_000_000


def test_read_ahead_stops_at_what_is_there() -> None:
    table = _table([1000] * 100)
    extent = table.extend(table.merge([0])[0], Window(0, MIB, 100), lambda u: u < 7)
    assert (extent.unit, extent.end) == (0, 7)


def test_crossing_the_mark_continues_the_stream() -> None:
    planner = Planner(_table([100_000] * 1000))
    pace = Pace()
    planner.window(0, 1, pace)
    planner.readahead.follow(0, 20)
    first, window = planner.readahead.passed(10, pace) or (None, None)
    assert first == 20
    assert window is not None
    assert window.behind >= 500_000


def test_the_window_of_a_reader_of_everything_goes_on_behind_what_is_there() -> None:
    table = _table([10] * 100)
    window = Window(0, 200, 100)
    here = set(range(20, 25)) | set(range(30, 40))

    def free(unit: int) -> bool:
        return unit not in here

    units, end = table.following(20, window, free, everything=False)
    assert (units, end) == ([25, 26, 27, 28, 29], 30)
    units, end = table.following(20, window, free, everything=True)
    assert (units, end) == ([*range(25, 30), *range(40, 55)], 55)
    assert table.following(95, Window(0, 0, 100), free, everything=True) == ([95], 96)
    assert table.following(100, window, free, everything=True) == ([], 100)


def test_random_reader_of_small_chunks_gets_one() -> None:
    """Full chunks of a large file that compress well are not small files."""
    table = UnitTable([16_000 * i for i in range(4000)], [16_000] * 4000, [65536] * 4000)
    planner = Planner(table)
    units = [u * 97 % 4000 for u in range(40)]
    assert sum(planner.window(u, u + 1, Pace()).behind > 0 for u in units) <= 2


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, MIB), min_size=1, max_size=60),
    gap=st.integers(0, 2 * GAP),
    data=st.data(),
)
def test_prefetch_requests_hold_each_wanted_unit_once(
    sizes: list[int], gap: int, data: st.DataObject
) -> None:
    table = _table(sizes, gap)
    wanted = sorted(data.draw(st.sets(st.integers(0, len(sizes) - 1), min_size=1)))
    extents = table.coalesce(wanted, MIB)
    units = [u for e in extents for u in range(e.unit, e.end)]
    assert units == sorted(set(units))
    assert set(wanted) <= set(units)
    for extent in extents:
        assert extent.off == table.stored(extent.unit)[0]
        assert extent.end_off == table.stored(extent.end - 1)[1]
        assert extent.end - extent.unit == 1 or extent.end_off - extent.off <= MIB
        assert extent.unit in wanted
        assert extent.end - 1 in wanted


def test_files_as_large_as_a_chunk_are_files_of_their_own_once_that_is_known() -> None:
    table = UnitTable([MIB * i for i in range(8)], [MIB] * 8, [MIB] * 7 + [100])
    assert table.file_of(3) == (0, 8)
    table.know_starts([1, 0, 0, 1, 1, 0, 1, 0])
    assert [table.file_of(u) for u in (0, 2, 3, 4, 7)] == [(0, 3), (0, 3), (3, 4), (4, 6), (6, 8)]


def test_those_who_start_at_once_over_one_link_share_it() -> None:
    link = Link()
    paces = [Pace(link) for _ in range(4)]
    assert paces[0].may_waste(0) == 4 * [pace.may_waste(n) for n, pace in enumerate(paces)][-1]
    alone = paces[0].spare()
    paces[1].link.ask(alone, ahead=True)
    paces[2].link.ask(alone // 2, ahead=False)
    assert 0 < paces[0].spare() <= alone // 2 + 1
    paces[2].link.ask(alone, ahead=False)
    assert paces[0].spare() == 0
    paces[1].link.ask(-alone, ahead=True)
    paces[2].link.ask(-alone - alone // 2, ahead=False)
    assert paces[0].spare() == alone


def test_pace_knows_the_link_and_not_the_connection() -> None:
    pace = Pace()
    now = 100.0
    for _ in range(2):
        pace.link.first_byte(0.02, now)
    for _ in range(100):  # two transfers of 50 MB/s each
        now += 0.01
        for _ in range(2):
            pace.link.received(500_000, now)
    assert 0.9e8 < pace.rate < 1.1e8
    pace.link.ended(now)
    pace.link.ended(now)
    pace.link.first_byte(0.02, now + 10)  # what was idle does not count
    pace.link.received(10_000_000, now + 10.1)
    assert 0.8e8 < pace.rate < 1.2e8
