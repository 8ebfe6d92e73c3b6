"""Chunks that another blob on this node has already: found by digest, copied instead of fetched.

What is copied is verified like what is fetched: a chunk is taken only when its
bytes match the digest that its own image states, and only where both sides have
digests.  Blobs that are open are looked into through their objects; an index of
them is made when a second one is open, and not before.  Those that are cached
and not open are found by ``chunkindex``, and so are the kernel's (cachefiles), open
or not: their descriptors cannot be read, but their files can, once they have a name.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from nydus_fscache.cache.blob_files import BlobFiles
from nydus_fscache.cache.chunk_index import ChunkIndex, Entry, Key, Place
from nydus_fscache.cache.presence import PAGE, is_recorded
from nydus_fscache.core.units import verify_chunk


class ChunkMap(Protocol):
    """What is looked at of ``rafs_v6.ChunkMap``."""

    @property
    def blob(self) -> Any: ...
    @property
    def nchunks(self) -> int: ...
    @property
    def nunits(self) -> int: ...
    @property
    def digest_source(self) -> str: ...


class ChunkSource(Protocol):
    """An open blob whose chunks others may take.  ``is_kernels``: its file cannot be read by
    ``fill_fd``, which is the kernel's (cachefiles)."""

    name: str
    is_kernels: bool
    fill_fd: int

    @property
    def chunks(self) -> ChunkMap: ...

    def has(self, off: int, length: int) -> bool:
        """Are all flat bytes [off, off + length) there?"""
        ...

    def is_present(self, unit: int) -> bool: ...


HAS_DIGEST = 0x1  # RAFS_CHUNK_HAS_DIGEST of csrc/codec/rafs.h
LATER_S = 3.0  # chunks are noted in the index when no more have come for so long
PATIENCE_S = 0.05  # for files that somebody is about to open
_NO_RECORD = -1  # instead of a chunk map's descriptor

Lend = Callable[[str, float], contextlib.AbstractContextManager[bool]]
KernelFile = Callable[[str, str], contextlib.AbstractContextManager[int | None]]
Take = Callable[[int, int, int, int], bool]  # unit, chunk, descriptor, offset


def _key(blob: Any, chunk: int) -> Key | None:
    record = blob.chunks[chunk]
    return (int(blob.digester), bytes(record.digest)) if record.flags & HAS_DIGEST else None


def holds_chunk(fd: int, blob: Any, chunk: int) -> bool:
    """Has a flat file the bytes of a chunk at their place, by the digest, and zeros behind them?"""
    record = blob.chunks[chunk]
    if not record.flags & HAS_DIGEST:
        return False
    size = int(record.usize)
    try:
        data = os.pread(fd, size + -size % PAGE, record.uoff)
    except OSError:  # what this disk cannot give, the network can
        return False
    return len(data) >= size and not any(data[size:]) and verify_chunk(blob, chunk, data[:size])


def read_chunk(fd: int, off: int, blob: Any, chunk: int) -> bytes | None:
    """The plain bytes of a chunk out of a file that may have them at ``off``, verified."""
    try:
        data = os.pread(fd, int(blob.chunks[chunk].usize), off)
    except OSError:  # what this disk cannot give, the network can
        return None
    return data if verify_chunk(blob, chunk, data) else None


def copy_chunk(fd: int, off: int, into: int, blob: Any, chunk: int) -> bool:
    """Let the kernel copy a chunk to its place, or share its extents, where it can.  What is
    there afterwards was verified; if that fails, its pages must not count as present."""
    record = blob.chunks[chunk]
    if off % PAGE or record.uoff % PAGE:
        return False
    at, end = off, off + int(record.usize)
    try:
        while at < end:
            copied = os.copy_file_range(fd, into, end - at, at, record.uoff + at - off)
            if copied == 0:
                return False
            at += copied
    except OSError:  # not between these files, or no space: writing will tell
        return False
    return holds_chunk(into, blob, chunk)


def _name(obj: ChunkSource) -> str:
    """In the index: the kernel's files are opened under one name many times."""
    return obj.name.partition("#")[0]


def _stands(chunk_map: int, place: Place) -> bool:
    """Is it on record?  A file of the kernel's has zeros where it has no data."""
    if chunk_map == _NO_RECORD:
        return True
    with contextlib.suppress(OSError):
        return is_recorded(chunk_map, place.chunk)
    return False


class Copies:
    """Thread-safe.  Once ``remove`` has returned, a blob's descriptor is not read any more."""

    def __init__(self, files: BlobFiles, lend: Lend) -> None:
        """``lend``: keeps a blob's files from being opened, marked or deleted for a moment, unless
        somebody has them open (then false); its number is the seconds that it may wait."""
        self._files = files
        self._lend = lend
        # by name DOMAIN/COOKIE and identity: its descriptor, if it has a file of that name
        self.kernel_file: KernelFile = lambda name, identity: contextlib.nullcontext()
        self._index = ChunkIndex(files.directory)
        self._lock = threading.Lock()
        self._indexes: dict[ChunkSource, dict[Key, int] | None] = {}
        self._identities: dict[ChunkSource, str] = {}
        self._unknown: set[ChunkSource] = set()  # not in the index when they were opened
        # recorded and not noted in the index yet: when the last came, and the units
        self._behind: dict[ChunkSource, tuple[float, list[int]]] = {}

    def add(self, obj: ChunkSource, identity: str) -> None:
        with self._lock:
            if obj.chunks.digest_source != "none":
                if not obj.is_kernels:
                    self._indexes[obj] = None
                self._identities[obj] = identity
                if not self._index.knows(_name(obj), identity):
                    self._unknown.add(obj)

    def remove(self, obj: ChunkSource) -> None:
        """It is not looked into any more, except through the index."""
        with self._lock:
            self._indexes.pop(obj, None)

    def recorded(self, obj: ChunkSource, units: Iterable[int]) -> None:
        """These will be found when the blob is not open any more.

        A reader may be busy with them, which the index would take a processor from: it is
        written by ``catch_up``."""
        with self._lock:
            if obj in self._identities:
                _, behind = self._behind.get(obj, (0.0, []))
                behind.extend(units)
                self._behind[obj] = time.monotonic(), behind

    def catch_up(self, now: float) -> None:
        """Note in the index what came a while before ``now``, in seconds of the monotonic clock."""
        with self._lock:
            due = [obj for obj, (last, _) in self._behind.items() if now - last >= LATER_S]
        for obj in due:
            self._note(obj, ())

    def _note(self, obj: ChunkSource, units: Iterable[int]) -> None:
        """``units``: besides those that are behind."""
        with self._lock:
            _, behind = self._behind.pop(obj, (0.0, []))
            identity = self._identities.get(obj)
        if identity is not None:
            self._index.add(_name(obj), identity, self._places(obj, {*behind, *units}))

    def closed(self, obj: ChunkSource, units: Iterable[int], *, recorded: bool) -> None:
        """``recorded``: is all that it has on record?  ``units``: those that this was not told."""
        is_new = obj in self._unknown
        everything = filter(obj.is_present, range(obj.chunks.nunits))
        self._note(obj, () if not recorded else everything if is_new else units)
        self._unknown.discard(obj)
        self._identities.pop(obj, None)

    def _places(self, obj: ChunkSource, units: Iterable[int]) -> Iterable[Entry]:
        blob = obj.chunks.blob
        for unit in units:
            chunks = blob.units[unit]
            for chunk in range(chunks.first, chunks.first + chunks.count):
                key = _key(blob, chunk)
                if key is not None:
                    record = blob.chunks[chunk]
                    yield key, chunk, int(record.uoff), int(record.usize)

    def forget(self, name: str) -> None:
        """The files of a blob are deleted."""
        self._index.forget(name)

    def close(self) -> None:
        self._index.close()

    def find(self, obj: ChunkSource, chunk: int) -> bytes | None:
        """The plain bytes of ``chunk`` of ``obj`` out of another blob, verified."""
        if len(self._indexes) < 2:  # itself and another; a hint only, so without the lock
            return None
        blob = obj.chunks.blob
        key = _key(blob, chunk)
        if key is None:
            return None
        with self._lock:
            for other in self._indexes:
                if other is not obj:
                    data = self._read(other, key, blob, chunk)
                    if data is not None:
                        return data
        return None

    def _read(self, other: ChunkSource, key: Key, blob: Any, chunk: int) -> bytes | None:
        index = self._indexes[other]
        if index is None:
            keys = ((_key(other.chunks.blob, i), i) for i in range(other.chunks.nchunks))
            index = self._indexes[other] = {k: i for k, i in keys if k is not None}
        found = index.get(key)
        if found is None:
            return None
        record = other.chunks.blob.chunks[found]
        size = int(blob.chunks[chunk].usize)
        if record.usize != size or not other.has(record.uoff, size):
            return None
        return read_chunk(other.fill_fd, record.uoff, blob, chunk)

    def take_closed(self, obj: ChunkSource, lacking: Mapping[int, range], take: Take) -> None:
        """Offer chunks to ``take``, which verifies them: those of units of which blobs that nobody
        has open say that they have all.  ``lacking``: {unit: chunks}."""
        until = time.monotonic() + PATIENCE_S
        found = self._places_of(obj, [chunks[0] for chunks in lacking.values()])
        lacking = {unit: chunks for unit, chunks in lacking.items() if chunks[0] in found}
        found |= self._places_of(obj, [c for chunks in lacking.values() for c in chunks[1:]])
        offers: dict[tuple[str, str], list[tuple[int, int, Place]]] = {}
        wanted: set[int] = set()
        for unit, chunks in lacking.items():
            if all(chunk in found for chunk in chunks):
                wanted |= set(chunks)
                for chunk in chunks:
                    for place in found[chunk]:
                        offers.setdefault((place.name, place.identity), []).append(
                            (unit, chunk, place)
                        )
        offers.pop((_name(obj), self._identities.get(obj, "")), None)
        for (name, identity), places in offers.items():
            with self._reading(name, identity, until) as fds:
                if fds is None:
                    continue
                data, chunk_map = fds
                for unit, chunk, place in places:
                    stands = chunk in wanted and _stands(chunk_map, place)
                    if stands and take(unit, chunk, data, place.uoff):
                        wanted.remove(chunk)

    @contextlib.contextmanager
    def _reading(self, name: str, identity: str, until: float) -> Iterator[tuple[int, int] | None]:
        """Data and chunk map of a blob; None when they cannot be had."""
        with contextlib.ExitStack() as opened:
            if "/" in name:
                lent, fd = True, opened.enter_context(self.kernel_file(name, identity))
                fds = None if fd is None else (fd, _NO_RECORD)
            else:
                lent = opened.enter_context(self._lend(name, until - time.monotonic()))
                fds = opened.enter_context(self._files.reading(name, identity)) if lent else None
            if lent and fds is None:  # deleted while no daemon ran, or of another image by now
                self._index.forget(name)
            yield fds

    def _places_of(self, obj: ChunkSource, chunks: Iterable[int]) -> dict[int, list[Place]]:
        """Of chunks that the index names places for."""
        blob = obj.chunks.blob
        keys = {chunk: key for chunk in chunks if (key := _key(blob, chunk)) is not None}
        found = self._index.find(list(keys.values())) if keys else {}
        places = {
            chunk: [p for p in found.get(key, ()) if p.usize == blob.chunks[chunk].usize]
            for chunk, key in keys.items()
        }
        return {chunk: its for chunk, its in places.items() if its}
