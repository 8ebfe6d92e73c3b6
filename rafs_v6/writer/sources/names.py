"""Names of the entries of directories, as a tar brings them: some 20 bytes each, not 150.

Those that came last are in a dictionary, those before in one sorted text.  ``NameBudget`` says
when they go there, so that a tar that jumps between directories costs no more than n log n names
looked at, and n / 2^16 for each.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate

_GONE = -1
_RECENT_MAX = 1 << 16  # names in dictionaries, of all directories together


class Names:
    """Rows of a directory's entries, by name.  ``hidden``: by name, the whiteouts below those
    directories in whose place came something else."""

    __slots__ = ("_ends", "_packed", "_recent", "_rows", "hidden")

    def __init__(self) -> None:
        self.hidden: dict[bytes, Names] = {}
        self._recent: dict[bytes, int] = {}
        self._packed, self._ends, self._rows = b"", _NO_NUMBERS, _NO_NUMBERS

    def get(self, name: bytes) -> int | None:
        row = self._recent.get(name)
        if row is None:
            at = self._find(name) if self._ends else None
            return None if at is None else self._rows[at]
        return None if row == _GONE else row

    def __setitem__(self, name: bytes, row: int) -> None:
        self._recent[name] = row

    def update(self, entries: Iterable[tuple[bytes, int]]) -> None:
        self._recent.update(entries)

    def remove(self, name: bytes) -> None:
        """When it is there."""
        if self.get(name) is not None:
            self._recent[name] = _GONE

    def items(self) -> Iterator[tuple[bytes, int]]:
        """In the order of names."""
        self.pack()
        start = 0
        for end, row in zip(self._ends, self._rows, strict=True):
            yield self._packed[start:end], row
            start = end

    def __len__(self) -> int:
        self.pack()
        return len(self._rows)

    def pack(self) -> None:
        """What came last goes to the rest."""
        if not self._recent:
            return
        recent, self._recent = self._recent, {}
        entries = dict(self.items()) | recent if self._ends else recent
        names = sorted(name for name, row in entries.items() if row != _GONE)
        self._packed = b"".join(names)
        self._ends = array("I", accumulate(map(len, names)))
        self._rows = array("I", map(entries.__getitem__, names))

    def _find(self, name: bytes) -> int | None:
        at = bisect_left(range(len(self._ends)), name, key=self._name)
        return at if at < len(self._ends) and self._name(at) == name else None

    def _name(self, at: int) -> bytes:
        return self._packed[self._ends[at - 1] if at else 0 : self._ends[at]]


_NO_NUMBERS = array("I")


class NameBudget:
    """Is told of each name that was set."""

    def __init__(self) -> None:
        self._touched: dict[int, Names] = {}
        self._count = 0

    def spend(self, names: Names) -> None:
        self._touched[id(names)] = names
        self._count += 1
        if self._count == _RECENT_MAX:
            for each in self._touched.values():
                each.pack()
            self._touched.clear()
            self._count = 0
