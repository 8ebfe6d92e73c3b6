"""A fetch target and a backend of a few lines: for tests of what moves the bytes, without root."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from nydus_fscache.backend.base import Backend, RangeStream
from nydus_fscache.errors import BackendError
from nydus_fscache.fetch.extents import UnitTable
from nydus_fscache.fetch.job import Counters, Extent, Filled, Source

UNIT = 1000  # stored bytes


class _Stream:
    def __init__(self, data: bytes, piece: int) -> None:
        self._data = memoryview(data)
        self._piece = piece

    def readinto(self, buf: memoryview) -> int:
        count = min(len(buf), len(self._data), self._piece)
        if not count:
            raise BackendError("cut", retryable=True)
        buf[:count] = self._data[:count]
        self._data = self._data[count:]
        return count

    def close(self) -> None:
        pass


class FakeBackend(Backend):
    """``on_range``: called with (off, length, prefetch) before a range comes; may wait or raise."""

    name = "fake"

    def __init__(self, data: bytes, piece: int = 1 << 20) -> None:
        self.data = data
        self.asked: list[tuple[int, int, bool]] = []
        self.on_range: Callable[[int, int, bool], object] = lambda off, length, prefetch: None
        self.corrupt = False  # it says that another way would help, once
        self.repaired: Callable[[], object] = lambda: None
        self._piece = piece

    def size(self, blob_id: str, *, deadline: float) -> int:
        return len(self.data)

    def open_range(
        self, blob_id: str, off: int, length: int, *, deadline: float, prefetch: bool
    ) -> RangeStream:
        self.asked.append((off, length, prefetch))
        self.on_range(off, length, prefetch)
        return _Stream(self.data[off : off + length], self._piece)

    def mark_corrupt(self, blob_id: str, asked_at: float) -> bool:
        was, self.corrupt = self.corrupt, False
        if was:
            self.repaired()
        return was

    def close(self) -> None:
        pass


@dataclass(eq=False)
class FakeTarget:
    """Units of ``UNIT`` bytes; a stored byte of 255 is a unit that does not verify (EILSEQ)."""

    source: Source
    units: int
    name: str = "fake"
    error: int = 0  # of every fill
    counters: Counters = field(default_factory=Counters)
    got: dict[int, bytes] = field(default_factory=dict)
    lost: list[tuple[int, int, int, str]] = field(default_factory=list)
    taken: set[int] = field(default_factory=set)
    here: set[int] = field(default_factory=set)  # units that ``reuse`` finds
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.table = UnitTable([UNIT * u for u in range(self.units)], [UNIT] * self.units)

    def stored(self, unit: int) -> tuple[int, int]:
        return self.table.stored(unit)

    def extent(self, first: int, end: int) -> Extent:
        return Extent(first, end, first * UNIT, end * UNIT)

    def claim(self, first: int, end: int, limit: int) -> tuple[int, list[Extent]]:
        units = [u for u in range(first, end) if u not in self.got and u not in self.taken]
        self.taken.update(units)
        return end, self.table.merge(units)

    def reuse(self, extent: Extent) -> list[Extent]:
        return self.table.merge([u for u in range(extent.unit, extent.end) if u not in self.here])

    def fill(self, first: int, count: int, stored: memoryview, stored_off: int) -> Filled:
        if self.error:
            return Filled(0, self.error)
        for unit in range(first, first + count):
            off = unit * UNIT - stored_off
            data = bytes(stored[off : off + UNIT])
            assert len(data) == UNIT
            if 255 in data:
                return Filled(unit - first, 84, f"chunk {unit}")  # EILSEQ
            with self.changed:
                self.got[unit] = data
                self.changed.notify_all()
        return Filled(count)

    def failed(
        self, first: int, end: int, error: int, reason: str, took_s: float = 0.0
    ) -> None:
        with self.changed:
            self.lost.append((first, end, error, reason))
            self.taken -= set(range(first, end))
            self.changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, 10)


def make_target(units: int = 10, *, bad: int | None = None, piece: int = 1 << 20) -> FakeTarget:
    """Over a backend of its own, whose unit ``bad`` does not verify."""
    data = bytearray(b"".join(bytes([u % 250]) * UNIT for u in range(units)))
    if bad is not None:
        data[bad * UNIT + 5] = 255
    return FakeTarget(Source(FakeBackend(bytes(data), piece), "blob"), units)


def backend_of(target: FakeTarget) -> FakeBackend:
    assert isinstance(target.source.backend, FakeBackend)
    return target.source.backend
