"""Where chunks lie: by number, so that a file's chunks are an array of numbers."""

from __future__ import annotations

from array import array
from itertools import repeat


class ChunkLocations:
    """Where chunks lie, by number: the blob (an index of ``names``), the chunk's index there and
    its offset in the flat blob, in bytes."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.blob, self.index, self.flat = array("H"), array("I"), array("Q")
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.index)

    def add(self, blob: str, index: int, flat: int) -> int:
        """The number of a new location."""
        self.blob.append(self._number(blob))
        self.index.append(index)
        self.flat.append(flat)
        return len(self.index) - 1

    def extend(self, blob: str, index: array[int], flat: array[int]) -> None:
        """New locations, all in one blob."""
        self.blob.extend(repeat(self._number(blob), len(index)))
        self.index += index
        self.flat += flat

    def copy(self) -> ChunkLocations:
        other = ChunkLocations()
        other.append(self)
        return other

    def append(self, other: ChunkLocations) -> int:
        """All of ``other``; what its numbers are more here."""
        start = len(self.index)
        numbers = [self._number(name) for name in other.names]
        self.blob.extend(map(numbers.__getitem__, other.blob))
        self.index += other.index
        self.flat += other.flat
        return start

    def _number(self, blob: str) -> int:
        number = self._numbers.get(blob)
        if number is None:
            number = self._numbers[blob] = len(self.names)
            self.names.append(blob)
        return number

    def key(self, location: int) -> tuple[str, int]:
        """(blob, chunk index)"""
        return self.names[self.blob[location]], self.index[location]
