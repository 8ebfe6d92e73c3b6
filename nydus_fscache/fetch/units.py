"""The state of each unit of a blob: missing, on its way for whom, or present.

No locks: the cache object calls it under its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Protocol

from nydus_fscache.cache.presence import PAGE
from nydus_fscache.cache.reuse import ChunkMap
from nydus_fscache.fetch.job import Extent


class Chunks(ChunkMap, Protocol):
    """What fetching needs of ``rafs_v6.ChunkMap``: as reuse, and what lies where."""

    @property
    def flat_size(self) -> int: ...
    def units_of(self, off: int, length: int) -> range: ...
    def unit_range(self, unit: int) -> tuple[int, int]: ...


class State(IntEnum):
    """AHEAD: asked for before any reader; JOINED: a reader came while it was under way."""

    MISSING = 0
    DEMANDED = 1
    AHEAD = 2
    JOINED = 3
    PRESENT = 4


_IN_FLIGHT = (State.DEMANDED, State.AHEAD, State.JOINED)


class UnitStates:
    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._states = bytearray(chunks.nunits)
        self.missing = chunks.nunits  # not PRESENT
        self._present = 0  # flat bytes: every status asks, of a million units too

    def __getitem__(self, unit: int) -> int:
        return self._states[unit]

    def pages(self, unit: int) -> tuple[int, int]:
        """Pages [first, end) of the flat file that hold the unit."""
        off, end = self._chunks.unit_range(unit)
        return off // PAGE, -(-end // PAGE)

    def found(self, unit: int) -> bool:
        """It is present from now on; False when it was before."""
        if self._states[unit] == State.PRESENT:
            return False
        self._states[unit] = State.PRESENT
        self._count(unit, 1)
        return True

    def _count(self, unit: int, present: int) -> None:
        """It is one more that is present, or (-1) one less."""
        off, end = self._chunks.unit_range(unit)
        self.missing -= present
        self._present += present * (end - off)

    def lost(self, unit: int) -> bool:
        """It is missing from now on; was it present?"""
        was_present = self._states[unit] == State.PRESENT
        self._states[unit] = State.MISSING
        if was_present:
            self._count(unit, -1)
        return was_present

    def join(self, unit: int) -> None:
        """A reader waits for it."""
        if self._states[unit] == State.AHEAD:
            self._states[unit] = State.JOINED

    def take(self, extents: Iterable[Extent], state: State) -> None:
        """The missing ones are on their way from now on."""
        for extent in extents:
            for unit in range(extent.unit, extent.end):
                if self._states[unit] == State.MISSING:
                    self._states[unit] = state

    def free(self, units: Iterable[int]) -> None:
        """They do not come after all."""
        for unit in units:
            if self._states[unit] != State.PRESENT:
                self._states[unit] = State.MISSING

    def in_flight(self) -> bool:
        return any(state in self._states for state in _IN_FLIGHT)

    def bytes_present(self) -> int:
        """Flat bytes of the units that are there."""
        return self._present if self.missing else self._chunks.flat_size


class BytesWithin:
    """How many bytes of [off, end) lie in the ascending ``extents``; for ascending questions."""

    def __init__(self, extents: list[tuple[int, int]]) -> None:
        self._extents = extents
        self._at = 0

    def __call__(self, off: int, end: int) -> int:
        extents, count = self._extents, 0
        while self._at < len(extents) and extents[self._at][1] <= off:
            self._at += 1
        at = self._at
        while at < len(extents) and extents[at][0] < end:
            count += min(end, extents[at][1]) - max(off, extents[at][0])
            at += 1
        return count
