"""Which units go into one request, and how far ahead of whom."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nydus_fscache.fetch.plan import GAP, MAX_REQUEST, MAX_WINDOW, Pace, Planner, Reach

MIB = 1 << 20


def _planner(sizes: list[int], gap: int = 0) -> Planner:
    offsets, at = [], 0
    for size in sizes:
        offsets.append(at)
        at += size + gap
    return Planner(offsets, sizes)


@given(
    sizes=st.lists(st.integers(1, 3 * MIB), min_size=1, max_size=60),
    gap=st.integers(0, 2 * GAP),
    data=st.data(),
)
def test_merged_requests_hold_each_wanted_unit_once(
    sizes: list[int], gap: int, data: st.DataObject
) -> None:
    planner = _planner(sizes, gap)
    wanted = sorted(data.draw(st.sets(st.integers(0, len(sizes) - 1), min_size=1)))
    extents = planner.merge(wanted)
    assert [u for e in extents for u in range(e.unit, e.end)] == wanted
    for extent in extents:
        assert extent.off == planner.stored(extent.unit)[0]
        assert extent.end_off == planner.stored(extent.end - 1)[1]
        assert extent.end_off - extent.off <= MAX_REQUEST


def _any(unit: int) -> bool:
    return True


def test_random_reader_of_large_chunks_gets_one() -> None:
    planner = _planner([400_000] * 1000)
    for unit in (500, 3, 900, 250):
        reach = planner.reach(unit, unit + 1, Pace())
        assert (reach.before, reach.behind) == (0, 0)


def test_small_units_bring_their_neighbours() -> None:
    planner = _planner([2000] * 1000)
    reach = planner.reach(100, 101, Pace())
    extent = planner.extend(planner.merge([100])[0], reach, _any)
    assert 15 <= extent.end - 100 <= 50
    assert 1 <= 100 - extent.unit <= 10


def test_neighbours_come_as_far_as_those_before_were_read() -> None:
    asked: set[int] = set()
    planner = Planner(
        [2000 * u for u in range(1000)], [2000] * 1000, None, asked.__contains__,
        is_here=lambda unit: 80 <= unit < 100,
    )  # fmt: skip
    unread = planner.reach(110, 111, Pace()).behind
    asked.update(range(80, 100))
    assert planner.reach(120, 121, Pace()).behind > 4 * unread


def test_window_of_a_sequential_reader_grows_to_the_limit() -> None:
    asked: set[int] = set()
    sizes = [200_000] * 2000
    planner = Planner([200_000 * u for u in range(2000)], sizes, None, asked.__contains__)
    pace = Pace()
    pace.latency_s, pace.rate = 0.1, 1e9
    unit, windows = 0, []
    for _ in range(12):
        asked.add(unit)
        reach = planner.reach(unit, unit + 1, pace)
        extent = planner.extend(planner.merge([unit])[0], reach, _any)
        planner.follow(unit, extent.end)
        windows.append(reach.behind)
        asked.update(range(unit, extent.end))
        unit = extent.end
    assert windows[0] == 0
    assert windows == sorted(windows)
    assert windows[-1] == MAX_WINDOW


def test_who_did_not_read_what_came_along_gets_no_window() -> None:
    asked = {0}
    planner = Planner([100_000 * u for u in range(99)], [100_000] * 99, None, asked.__contains__)
    planner.reach(0, 1, Pace())
    planner.follow(0, 20)
    asked.add(20)
    assert planner.reach(20, 21, Pace()).behind == 0


def test_window_ends_with_the_file_until_a_reader_goes_from_file_to_file() -> None:
    """Files of four full chunks and a tail."""
    ulen = ([1 << 20] * 4 + [5000]) * 30
    planner = Planner([300_000 * u for u in range(150)], [300_000] * 150, ulen)
    unit, ends = 0, []
    while unit < 100:
        reach = planner.reach(unit, unit + 1, Pace())
        extent = planner.extend(planner.merge([unit])[0], reach, _any)
        planner.follow(unit, extent.end)
        ends.append(extent.end)
        unit = extent.end
    assert ends[:2] == [1, 5]
    assert any(end % 5 for end in ends[2:])


def test_a_file_of_a_few_units_comes_whole_while_such_files_are_read() -> None:
    asked: set[int] = set()
    ulen = ([1 << 20] * 9 + [5000]) * 50
    planner = Planner(
        [300_000 * u for u in range(500)], [300_000] * 500, ulen, asked.__contains__
    )
    assert planner.file(12) == (10, 20)
    assert planner.file(13) is None  # it is on its way
    for unit in (20, 30):
        planner.file(unit)
    assert planner.file(40) is None  # nobody reads them
    asked.update(range(10, 30))
    assert planner.file(41) == (40, 50)
    huge = Planner([300_000 * u for u in range(500)], [300_000] * 500, [1 << 20] * 499 + [1])
    assert huge.file(250) is None


def test_window_is_what_latency_and_bandwidth_can_use() -> None:
    pace = Pace()
    pace.latency_s, pace.rate = 0.02, 100e6
    assert pace.window() == 4_000_000


def test_read_ahead_stops_at_what_is_there() -> None:
    planner = _planner([1000] * 100)
    extent = planner.extend(planner.merge([0])[0], Reach(0, MIB, 100), lambda u: u < 7)
    assert (extent.unit, extent.end) == (0, 7)


def test_crossing_the_mark_continues_the_stream() -> None:
    planner = _planner([100_000] * 1000)
    pace = Pace()
    planner.reach(0, 1, pace)
    planner.follow(0, 20)
    first, reach = planner.ahead(10, pace) or (None, None)
    assert first == 20
    assert reach is not None
    assert reach.behind >= 500_000


def test_random_reader_of_small_chunks_gets_one() -> None:
    """Full chunks of a large file that compress well are not small files."""
    planner = Planner([16_000 * i for i in range(4000)], [16_000] * 4000, [65536] * 4000)
    units = [u * 97 % 4000 for u in range(40)]
    assert sum(planner.reach(u, u + 1, Pace()).behind > 0 for u in units) <= 2


@given(
    sizes=st.lists(st.integers(1, MIB), min_size=1, max_size=60),
    gap=st.integers(0, 2 * GAP),
    data=st.data(),
)
def test_prefetch_requests_hold_each_wanted_unit_once(
    sizes: list[int], gap: int, data: st.DataObject
) -> None:
    planner = _planner(sizes, gap)
    wanted = sorted(data.draw(st.sets(st.integers(0, len(sizes) - 1), min_size=1)))
    extents = planner.bridge(wanted, MIB)
    units = [u for e in extents for u in range(e.unit, e.end)]
    assert units == sorted(set(units))
    assert set(wanted) <= set(units)
    for extent in extents:
        assert extent.off == planner.stored(extent.unit)[0]
        assert extent.end_off == planner.stored(extent.end - 1)[1]
        assert extent.end - extent.unit == 1 or extent.end_off - extent.off <= MIB
        assert extent.unit in wanted
        assert extent.end - 1 in wanted


def test_pace_knows_the_link_and_not_the_connection() -> None:
    pace = Pace()
    now = 100.0
    for _ in range(2):
        pace.first_byte(0.02, now)
    for _ in range(100):  # two transfers of 50 MB/s each
        now += 0.01
        for _ in range(2):
            pace.received(500_000, now)
    assert 0.9e8 < pace.rate < 1.1e8
    pace.ended(now)
    pace.ended(now)
    pace.first_byte(0.02, now + 10)  # what was idle does not count
    pace.received(10_000_000, now + 10.1)
    assert 0.8e8 < pace.rate < 1.2e8
