"""Much of an image at once: units are read in runs, decoded and verified over several threads.

Memory: two arenas of ``ARENA`` bytes of decoded data, or as much as one unit needs
(at most 16 MiB), and the compressed bytes of three such batches.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from rafs_v6._codec import ffi, lib
from rafs_v6.errors import ImageError
from rafs_v6.format.toc import ReadAt
from rafs_v6.reader.chunkmap import ChunkMap
from rafs_v6.reader.image import Image
from rafs_v6.reader.inode import ChunkRef
from rafs_v6.values import dataclass, field

ARENA = 8 << 20
_UNITS = 4096
_GAP = 64 << 10  # unwanted bytes that are cheaper to read than to ask around

WantedUnit = tuple[ChunkMap, int]


@dataclass(slots=True)
class Batch:
    """Decoded units.  ``starts``: where each lies in ``data``, good until the next is asked for.

    ``unread``: by position in ``units``, what reading raised; ``undecoded``:
    those that the codec refused; ``bad``: those with a chunk that does not match its digest.
    """

    units: Sequence[WantedUnit]
    data: memoryview
    starts: list[int] = field(default_factory=list)
    unread: dict[int, Exception] = field(default_factory=dict)
    undecoded: list[int] = field(default_factory=list)
    bad: list[int] = field(default_factory=list)
    sources: Sequence[Any] = ()
    buffers: Sequence[Any] = ()  # of the sources

    def compressed(self, i: int) -> bytes:
        """The compressed bytes of a unit that was read."""
        chunks, unit = self.units[i]
        return bytes(ffi.buffer(self.sources[i], chunks.unit(unit).clen))

    def uncompressed(self, i: int) -> memoryview:
        chunks, unit = self.units[i]
        return self.data[self.starts[i] : self.starts[i] + chunks.unit(unit).ulen]

    def require(self) -> None:
        """Raise what is wrong with any of it."""
        for error in self.unread.values():
            raise error
        for i in (*self.undecoded, *self.bad):
            chunks, unit = self.units[i]
            what = "does not decode" if i in self.undecoded else "does not match its digests"
            raise ImageError(
                f"blob {chunks.info.blob_id}: unit {unit} at {chunks.unit(unit).coff:#x} {what}"
            )


class UnitReader:
    """Uses, decodes and reads three batches at the same time.

    Every batch is decoded into the arena that was handed out with it, in the order of the
    groups, and only after the batch before the last was used: how long a read or a decoder
    takes does not matter.
    """

    def __init__(self, read_at: ReadAt, threads: int = 0) -> None:
        self._read_at = read_at
        self._threads = threads or os.cpu_count() or 1

    def batches(self, groups: Iterable[Sequence[WantedUnit]]) -> Iterator[Batch]:
        """One ``Batch`` a group, in order; see ``grouped``."""
        reads: deque[tuple[Sequence[WantedUnit], Future[_Reads]]] = deque()
        decoded: deque[Future[Batch]] = deque()
        arenas = itertools.cycle((_Arena(), _Arena()))
        # A decoder waits for what was read before it, so two threads do not wait for each other.
        with ThreadPoolExecutor(2, "read-ahead") as pool:
            for units in groups:
                reads.append((units, pool.submit(_read, self._read_at, units)))
                if len(reads) > 1:
                    decoded.append(pool.submit(self._decode, next(arenas), *reads.popleft()))
                if len(decoded) > 1:
                    yield decoded.popleft().result()
            decoded.extend(pool.submit(self._decode, next(arenas), *read) for read in reads)
            for batch in decoded:
                yield batch.result()

    def _decode(
        self, arena: _Arena, units: Sequence[WantedUnit], read: Future[_Reads]
    ) -> Batch:
        reads = read.result()
        need = sum(chunks.unit(unit).ulen for chunks, unit in units)
        if need > len(arena.data):
            arena.data = bytearray(max(need, ARENA))
        batch = Batch(
            units, memoryview(arena.data), unread=reads.errors, sources=reads.sources,
            buffers=reads.buffers,
        )  # fmt: skip
        out = ffi.from_buffer("uint8_t[]", arena.data)
        jobs = ffi.new("struct rafs_unit_job[]", len(units))
        numbers: list[int] = []
        start = 0
        for i, (chunks, unit) in enumerate(units):
            batch.starts.append(start)
            source = reads.sources[i]
            if source is not None:
                job = jobs[len(numbers)]
                job.blob, job.unit = chunks.blob, unit
                job.compressed, job.out = source, out + start
                numbers.append(i)
            start += chunks.unit(unit).ulen
        failed = lib.rafs_units_decode(jobs, len(numbers), self._threads) if numbers else 0
        if failed < 0:
            raise MemoryError("decoders")
        if failed:
            for k, i in enumerate(numbers):
                if jobs[k].error:
                    batch.undecoded.append(i)
                elif jobs[k].bad:
                    batch.bad.append(i)
        return batch


@dataclass(slots=True)
class _Arena:
    data: bytearray = field(default_factory=bytearray)


@dataclass(slots=True)
class _Reads:
    """``sources``: the first compressed byte of each unit (cdata, into ``buffers``)."""

    sources: list[Any]
    buffers: list[Any] = field(default_factory=list)
    errors: dict[int, Exception] = field(default_factory=dict)


def _read(read_at: ReadAt, units: Sequence[WantedUnit]) -> _Reads:
    out = _Reads([None] * len(units))
    places = []
    for i, (chunks, number) in enumerate(units):
        unit = chunks.unit(number)
        places.append((chunks.info.blob_id, unit.coff, unit.coff + unit.clen, i))
    places.sort()
    run: list[tuple[str, int, int, int]] = []
    end = 0
    for place in places:
        if run and (place[0] != run[0][0] or place[1] > end + _GAP):
            _read_run(read_at, run, end, out)
            run = []
        end = max(end, place[2]) if run else place[2]
        run.append(place)
    if run:
        _read_run(read_at, run, end, out)
    return out


def _read_run(
    read_at: ReadAt, run: list[tuple[str, int, int, int]], end: int, out: _Reads
) -> None:
    blob_id, first = run[0][0], run[0][1]
    try:
        data = read_at(blob_id, first, end - first)
        if len(data) != end - first:
            raise ImageError(f"blob {blob_id}: {len(data)} bytes came for {end - first}")
    except Exception as error:  # the reader is the caller's, and raises what it likes
        if len(run) > 1:  # one bad place is no reason not to have the others
            for place in run:
                _read_run(read_at, [place], place[2], out)
        else:
            out.errors[run[0][3]] = error
        return
    buffer = ffi.from_buffer("uint8_t[]", data)
    out.buffers.append(buffer)
    for _, start, _, i in run:
        out.sources[i] = buffer + (start - first)


def grouped(units: Iterable[WantedUnit]) -> Iterator[list[WantedUnit]]:
    """Cut into groups that fit the arena."""
    group: list[WantedUnit] = []
    size = 0
    for chunks, unit in units:
        ulen = chunks.unit(unit).ulen
        if group and (size + ulen > ARENA or len(group) == _UNITS):
            yield group
            group, size = [], 0
        group.append((chunks, unit))
        size += ulen
    if group:
        yield group


def stream(
    image: Image, read_at: ReadAt, refs: Iterable[ChunkRef], threads: int = 0
) -> Generator[memoryview, None, None]:
    """The data of ``refs`` in their order, one piece or more for each, valid until the next.

    Raises ``ImageError`` for what does not decode or match, and what ``read_at`` raises.
    """
    windows: list[list[ChunkRef]] = []

    def groups() -> Iterator[list[WantedUnit]]:
        window: list[ChunkRef] = []
        wanted: dict[tuple[int, int], WantedUnit] = {}
        size = 0
        for ref in refs:
            chunks = image.chunk_map(ref.blob_index)
            new = [
                (ref.blob_index, u)
                for u in chunks.units_of(ref.flat_off, ref.size)
                if (ref.blob_index, u) not in wanted
            ]
            more = sum(chunks.unit(u).ulen for _, u in new)
            if window and (size + more > ARENA or len(window) == _UNITS):
                windows.append(window)
                yield list(wanted.values())
                window, wanted, size = [], {}, 0
                new = [
                    (ref.blob_index, u) for u in chunks.units_of(ref.flat_off, ref.size)
                ]
                more = sum(chunks.unit(u).ulen for _, u in new)
            wanted.update((key, (chunks, key[1])) for key in new)
            size += more
            window.append(ref)
        if window:
            windows.append(window)
            yield list(wanted.values())

    for batch in UnitReader(read_at, threads).batches(groups()):
        batch.require()
        index = {(c.info.index, u): i for i, (c, u) in enumerate(batch.units)}
        for ref in windows.pop(0):
            yield from _pieces(image.chunk_map(ref.blob_index), ref, batch, index)


def _pieces(
    chunks: ChunkMap, ref: ChunkRef, batch: Batch, index: dict[tuple[int, int], int]
) -> Iterator[memoryview]:
    end, have = ref.flat_off + ref.size, 0
    for number in chunks.units_of(ref.flat_off, ref.size):
        unit = chunks.unit(number)
        start = batch.starts[index[ref.blob_index, number]]
        for i in range(chunks.chunk_at(ref.flat_off, unit), unit.first + unit.count):
            chunk = chunks.blob.chunks[i]
            if chunk.uoff >= end:
                break
            low = max(ref.flat_off, chunk.uoff)
            high = min(end, chunk.uoff + chunk.usize)
            if low < high:
                at = start + chunk.unit_off + low - chunk.uoff
                have += high - low
                yield batch.data[at : at + high - low]
    if have != ref.size:
        raise ImageError(f"chunk at {ref.flat_off:#x} has {have} of {ref.size} bytes")
