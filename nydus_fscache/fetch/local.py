"""Units that this node has already: in the cache file without a record, or in another blob.

Everything is verified like fetched data before it counts as present.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nydus_fscache.cache.reuse import ChunkSource, Copies, copy_chunk, read_chunk
from nydus_fscache.core.core import Core
from nydus_fscache.fetch.job import Counters
from nydus_fscache.fetch.units import Chunks
from nydus_fscache.files import OpenFile

Arrived = Callable[[int], object]  # a unit is verified and written


class LocalUnits:
    """Of the blob ``owner``, whose number in the C core is ``oid``."""

    def __init__(
        self,
        oid: int,
        owner: ChunkSource,
        chunks: Chunks,
        core: Core,
        file: OpenFile,
        clen: Sequence[int],
        counters: Counters,
    ) -> None:
        self._oid = oid
        self._owner = owner
        self._chunks = chunks
        self._core = core
        self._clen = clen
        self._counters = counters
        self._file = file
        self.candidates: set[int] = set()  # maybe in the file
        self.copies: Copies | None = None

    def take(self, units: Iterable[int], arrived: Arrived) -> list[int]:
        """Tell ``arrived`` which are here; returns those that are to be fetched all the same.

        Raises ``OSError`` when a write fails, or ``file`` is closed."""
        rest = [unit for unit in units if not self._recover(unit, arrived)]
        return rest if self.copies is None else self._copy(self.copies, rest, arrived)

    def _recover(self, unit: int, arrived: Arrived) -> bool:
        """Is a candidate right?  Then it counts as present from now on.

        It is written again: what is read may be in memory alone, after a write-back that failed,
        and only of a new write the next sync tells."""
        if unit not in self.candidates:
            return False
        self.candidates.discard(unit)
        blob = self._chunks.blob
        record = blob.units[unit]
        found: dict[int, bytes] = {}
        with self._file.use() as fd:
            for chunk in range(record.first, record.first + record.count):
                data = read_chunk(fd, int(blob.chunks[chunk].uoff), blob, chunk)
                if data is None:
                    return False
                found[int(blob.chunks[chunk].uoff)] = data
        for off, data in found.items():
            self._core.fill_flat(self._oid, off, data)
        self._counters.recovered += self._clen[unit]
        arrived(unit)
        return True

    def _copy(self, copies: Copies, wanted: list[int], arrived: Arrived) -> list[int]:
        """Fill the units that other blobs have, chunk by chunk; those that they have not."""
        blob = self._chunks.blob
        parts: dict[int, dict[int, bytes | None]] = {}  # of units that are not whole yet
        lacking: dict[int, range] = {}  # their other chunks
        for unit in wanted:
            first, end = blob.units[unit].first, blob.units[unit].first + blob.units[unit].count
            found: dict[int, bytes | None] = {}
            while first < end and (data := copies.find(self._owner, first)) is not None:
                found[first] = data
                first += 1
            if first == end:
                self._reused(unit, found)
                arrived(unit)
            else:
                parts[unit], lacking[unit] = found, range(first, end)

        def take(unit: int, chunk: int, fd: int, off: int) -> bool:
            data = None
            with self._file.use() as into:
                is_copied = copy_chunk(fd, off, into, blob, chunk)
            if not is_copied:
                data = read_chunk(fd, off, blob, chunk)
                if data is None:
                    return False
            parts[unit][chunk] = data
            if len(parts[unit]) == blob.units[unit].count:
                self._reused(unit, parts.pop(unit))
                arrived(unit)
            return True

        copies.take_closed(self._owner, lacking, take)
        return list(parts)

    def _reused(self, unit: int, parts: dict[int, bytes | None]) -> None:
        """``parts``: the plain bytes of its chunks; None for what is in the file already."""
        for chunk, data in parts.items():
            record = self._chunks.blob.chunks[chunk]
            if data is None:
                self._core.filled(self._oid, record.uoff, record.usize)
            else:
                self._core.fill_flat(self._oid, record.uoff, data)
        self._counters.reused += self._clen[unit]
