"""Units of a blob as requests: which of them go into one.

Pure functions of unit numbers and stored offsets; no I/O, no locks.  One request never spans a
hole in the stored blob larger than ``GAP``.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

from nydus_fscache.fetch.job import KIB, MAX_REQUEST, Extent
from rafs_v6.values import dataclass

GAP = 64 * KIB  # stored bytes that are cheaper to read over than to ask anew for
SMALL_UNIT = 32 * KIB  # stored bytes; below this neighbours come along
COALESCED_UNITS = 8
_IS_NOT_0 = b"\0" + b"\1" * 255


@dataclass(frozen=True, slots=True)
class Window:
    """The neighbours that may come along with a miss: stored bytes ``before`` and ``behind`` it,
    no unit from ``end`` on, only small ones when ``small``.  ``sequential``: for a reader that
    goes on."""

    before: int
    behind: int
    end: int
    small: bool = False
    sequential: bool = False


class UnitTable:
    """Where the units of a blob lie in its stored bytes."""

    def __init__(
        self, coff: Sequence[int], clen: Sequence[int], ulen: Sequence[int] | None = None
    ) -> None:
        """``ulen``: decoded sizes; a unit of the largest size is part of a large file, which ends
        with the first that is smaller."""
        self.coff = coff
        self.clen = clen
        full = max(ulen) if ulen else 0
        is_large = ulen is not None and full >= SMALL_UNIT
        self.is_full = bytes(map(full.__eq__, ulen)) if is_large and ulen else bytes(len(coff))

    def __len__(self) -> int:
        return len(self.coff)

    def know_starts(self, starts: Sequence[int]) -> None:
        """Where files begin, by unit (not 0): what is before is the end of another."""
        halves = array("H", starts).tobytes()  # in few calls, however many they are
        either = int.from_bytes(halves[::2], "little") | int.from_bytes(halves[1::2], "little")
        begins = either.to_bytes(len(self), "little").translate(_IS_NOT_0)[1:] + b"\0"
        full = int.from_bytes(self.is_full, "little") & ~int.from_bytes(begins, "little")
        self.is_full = full.to_bytes(len(self), "little")

    def stored(self, unit: int) -> tuple[int, int]:
        """Stored bytes [off, end)."""
        return self.coff[unit], self.coff[unit] + self.clen[unit]

    def file_of(self, unit: int) -> tuple[int, int]:
        """Units [first, end) of the file that the unit is of: full ones, and the first that is
        not."""
        last = self.is_full.find(0, unit)
        return self.is_full.rfind(0, 0, unit) + 1, last + 1 if last >= 0 else len(self)

    def is_small(self, unit: int) -> bool:
        return self.clen[unit] < SMALL_UNIT and not self.is_full[unit]

    def _joins(self, extent: Extent, unit: int) -> bool:
        off, end = self.stored(unit)
        return (
            extent.end == unit
            and self.coff[unit - 1] <= off <= extent.end_off + GAP
            and end - extent.off <= MAX_REQUEST
        )

    def _grown(self, extent: Extent) -> Extent:
        end_off = max(extent.end_off, self.stored(extent.end)[1])
        return Extent(extent.unit, extent.end + 1, extent.off, end_off)

    def merge(self, units: Sequence[int]) -> list[Extent]:
        """Ascending units in as few requests as GAP and MAX_REQUEST allow."""
        extents: list[Extent] = []
        for unit in units:
            if extents and self._joins(extents[-1], unit):
                extents[-1] = self._grown(extents[-1])
            else:
                extents.append(Extent(unit, unit + 1, *self.stored(unit)))
        return extents

    def coalesce(self, units: Sequence[int], limit: int) -> list[Extent]:
        """Like ``merge`` for units to prefetch: small units between come along; up to ``limit``."""
        extents: list[Extent] = []
        for unit in units:
            if extents:
                last = extents[-1]
                end = self.stored(unit)[1]
                near = unit - last.end <= COALESCED_UNITS and (
                    last.off <= self.coff[last.end] <= self.coff[unit] <= last.end_off + GAP
                )
                if near and end - last.off <= limit and self.coff[unit - 1] <= self.coff[unit]:
                    extents[-1] = Extent(last.unit, unit + 1, last.off, max(last.end_off, end))
                    continue
            extents.append(Extent(unit, unit + 1, *self.stored(unit)))
        return extents

    def following(
        self, first: int, window: Window, free: Callable[[int], bool], *, everything: bool
    ) -> tuple[list[int], int]:
        """Free units from the first one at or behind ``first`` on, of up to ``window.behind``
        stored bytes and one at least; and the unit behind the last that was looked at.
        ``everything``: past those that are not free, which end the window otherwise."""
        found: list[int] = []
        unit, room = first, window.behind
        furthest = self.coff[first] + 2 * room if first < len(self.coff) else 0
        while unit < min(len(self.coff), window.end):
            if free(unit):
                room -= self.clen[unit]
                if found and room < 0:
                    break
                found.append(unit)
            elif self.coff[unit] > furthest or (found and not everything):
                break
            unit += 1
        return found, unit

    def extend(self, extent: Extent, window: Window, free: Callable[[int], bool]) -> Extent:
        """Let neighbours within ``window`` come along, those behind the extent first."""

        def may_come(unit: int) -> bool:
            return free(unit) and not (window.small and not self.is_small(unit))

        limit = extent.end_off + window.behind
        while (
            extent.end < min(len(self.coff), window.end)
            and self.stored(extent.end)[1] <= limit
            and may_come(extent.end)
            and self._joins(extent, extent.end)
        ):
            extent = self._grown(extent)
        first = max(0, extent.off - window.before)
        while extent.unit and may_come(extent.unit - 1):
            off, end = self.stored(extent.unit - 1)
            if not first <= off < extent.off <= end + GAP or extent.end_off - off > MAX_REQUEST:
                break
            extent = Extent(extent.unit - 1, extent.end, off, max(end, extent.end_off))
        return extent
