"""Which units go into one request, and how far ahead of whom."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nydus_fscache.cache.plan import GAP, MAX_REQUEST, MAX_WINDOW, Pace, Planner

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


def test_random_reader_of_large_chunks_gets_one() -> None:
    planner = _planner([400_000] * 1000)
    for unit in (500, 3, 900, 250):
        assert planner.window(unit, unit + 1, Pace()) == 0


def test_small_units_bring_their_neighbours() -> None:
    planner = _planner([2000] * 1000)
    window = planner.window(10, 11, Pace())
    extent = planner.extend(planner.merge([10])[0], window, lambda u: True)
    assert 30 <= extent.end - extent.unit <= 100


def test_window_of_a_sequential_reader_grows_to_the_limit() -> None:
    planner = _planner([200_000] * 2000)
    pace = Pace()
    pace.latency_s, pace.rate = 0.1, 1e9
    unit, windows = 0, []
    for _ in range(12):
        window = planner.window(unit, unit + 1, pace)
        extent = planner.extend(planner.merge([unit])[0], window, lambda u: True)
        planner.follow(unit, extent.end)
        windows.append(window)
        unit = extent.end
    assert windows[0] == 0
    assert windows == sorted(windows)
    assert windows[-1] == MAX_WINDOW


def test_window_is_what_latency_and_bandwidth_can_use() -> None:
    pace = Pace()
    pace.latency_s, pace.rate = 0.02, 100e6
    assert pace.window() == 4_000_000


def test_read_ahead_stops_at_what_is_there() -> None:
    planner = _planner([1000] * 100)
    extent = planner.extend(planner.merge([0])[0], MIB, lambda u: u < 7)
    assert (extent.unit, extent.end) == (0, 7)


def test_crossing_the_mark_continues_the_stream() -> None:
    planner = _planner([100_000] * 1000)
    pace = Pace()
    planner.window(0, 1, pace)
    planner.follow(0, 20)
    first, window = planner.ahead(10, pace) or (None, None)
    assert first == 20
    assert window is not None
    assert window >= 500_000


def test_random_reader_of_small_chunks_gets_one() -> None:
    """Full chunks of a large file that compress well are not small files."""
    planner = Planner([16_000 * i for i in range(4000)], [16_000] * 4000, [65536] * 4000)
    assert sum(planner.window(u * 97 % 4000, u * 97 % 4000 + 1, Pace()) > 0 for u in range(40)) <= 2


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
