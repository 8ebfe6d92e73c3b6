"""The cache objects that are open, by number and by name, counted by the images that use them."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field

from nydus_fscache.backend.base import Backend
from nydus_fscache.cache.blob_files import claim_name
from nydus_fscache.cache.evict import touch
from nydus_fscache.cache.presence import PageMap, shared_map
from nydus_fscache.cache.reuse import Copies
from nydus_fscache.cache.store import Store
from nydus_fscache.core.core import Core
from nydus_fscache.core.park import Park
from nydus_fscache.errors import CacheDirError, DaemonError
from nydus_fscache.fetch.cache_object import CacheObject
from nydus_fscache.fetch.job import Counters, Source
from nydus_fscache.fetch.orphans import OrphanFiles
from nydus_fscache.fetch.queue import Fetcher
from nydus_fscache.files import data_extents
from nydus_fscache.image.image import ImageBlob
from nydus_fscache.kernel.leases import is_sole_open
from rafs_v6.values import dataclass

log = logging.getLogger("objects")

CLOSE_PATIENCE_S = 30.0
LEAVE_PATIENCE_S = 2 * CLOSE_PATIENCE_S
LOAN_S = 0.01  # about what one takes
MAX_EXTENTS = 65536  # of a cache file, that are looked at when it is opened


@dataclass(slots=True)
class _Use:
    """Descriptors: -1 over cachefiles, where the kernel's is closed by the C core."""

    identity: str
    sources: list[Source]  # one for each backend that has it, the newest last
    object: CacheObject = field(init=False)
    fill_fd: int = -1
    pages_fd: int = -1
    images: int = 1
    at_first: int = 0  # bytes that were there when it was opened; over cachefiles not known then


def _growth(use: _Use) -> int:
    return max(0, use.object.bytes_present() - use.at_first)


class Objects:
    """Opens, shares and closes cache objects.  Thread-safe."""

    def __init__(
        self,
        store: Store,
        core: Core,
        fetcher: Fetcher,
        park: Park,
        orphans: OrphanFiles,
        numbers: Mapping[str, int],
    ) -> None:
        """``numbers``: object numbers by name that an earlier service gave; they stay the same."""
        self._store = store
        self._core = core
        self._fetcher = fetcher
        self._park = park
        self._lock = threading.RLock()
        self._gone = threading.Condition(self._lock)
        self._leaving: set[str] = set()  # names that are being closed
        self._loans: list[str] = []  # names, one entry for each that reads the files
        self._uses: dict[str, _Use] = {}
        self._by_oid: dict[int, CacheObject] = {}
        self._numbers = dict(numbers)
        self._closed: dict[str, Counters] = {}  # sums of those that are, by type of backend
        self._grown = 0  # by those, bytes
        self.orphans = orphans
        self.copies = Copies(store.blobs, self.lend)
        self.on_found: Callable[[], object] = list  # what an object has is known; the service's
        self._next_oid = 1 + max(self.orphans.highest(), max(numbers.values(), default=0))

    def get(self, oid: int) -> CacheObject | None:
        return self._by_oid.get(oid)

    def all(self) -> list[CacheObject]:
        return list(self._by_oid.values())

    def totals(self) -> dict[str, Counters]:
        """Of all objects since the start of this process, by type of backend."""
        sums: dict[str, Counters] = {}
        with self._lock:
            for kind, counters in self._closed.items():
                sums.setdefault(kind, Counters()).add(counters)
            for obj in self._by_oid.values():
                sums.setdefault(obj.source.backend.name, Counters()).add(obj.counters)
        return sums

    def grown(self) -> int:
        """Bytes by which blobs have grown since the start of this process, or more."""
        with self._lock:
            return self._grown + sum(map(_growth, self._uses.values()))

    def numbers(self) -> dict[str, int]:
        """What a successor must know."""
        with self._lock:
            left = {name: oid for name, oid in self._numbers.items() if oid in self.orphans}
            return left | {name: use.object.oid for name, use in self._uses.items()}

    def is_in_place(self) -> bool:
        """See ``Store.is_in_place``."""
        return self._store.is_in_place()

    def next_number(self) -> int:
        with self._lock:
            oid, self._next_oid = self._next_oid, self._next_oid + 1
            return oid

    def open_file(self, blob: ImageBlob, backend: Backend) -> CacheObject:
        """The object of a blob over a cache file of ours; shared when it is open already.

        A new one's fill descriptor and page map are with the keeper when this returns,
        before anybody marks the file.
        """
        info, identity = blob.info, blob.identity
        with self._lock:
            name = self._claim(info.blob_id, identity)
            source = Source(backend, info.blob_id)
            if use := self._uses.get(name):
                use.images += 1
                self.add_source(use.object, source)
                return use.object
            oid = self._numbers.pop(name, 0) or self._number_left(name, identity)
            use = _Use(identity, [source])
            try:
                obj = use.object = self._open(use, oid, name, blob, source)
            except BaseException:
                if oid in self.orphans:
                    self._numbers[name] = oid
                else:
                    self._give_up(oid, use)
                raise
            use.at_first = obj.bytes_present()
            self._uses[name] = use
            touch(self._store.blobs.directory, name)
            obj.share(self.copies)
            self.copies.add(obj, identity)
            self._by_oid[oid] = obj
        for off, length in self.orphans.taken(oid):
            obj.demand(off, length)
        return obj

    def _number_left(self, name: str, identity: str) -> int:
        """Of a file that is left without its number being known; else a new one."""
        found = self.orphans.find(lambda fd: self._store.blobs.is_named(name, identity, fd))
        return found or self.next_number()

    def _open(self, use: _Use, oid: int, name: str, blob: ImageBlob, source: Source) -> CacheObject:
        """``use`` gets the descriptors, as soon as there are any."""
        files, size = self._store.blobs, blob.chunks.flat_size
        left = self.orphans.look_at(oid)
        if left is not None:
            use.fill_fd, use.pages_fd = left.fill_fd, left.pages_fd
        is_new = min(use.fill_fd, use.pages_fd) < 0
        may_record = True
        if use.fill_fd < 0:
            use.fill_fd = files.open_data(name, blob.identity, size)
            self._park.keep(f"fill.{oid}", use.fill_fd)
        elif os.fstat(use.fill_fd).st_size != size:
            log.error("cache file of %s was cut while it was in use: fetched anew", name)
            os.ftruncate(use.fill_fd, 0)
            os.ftruncate(use.fill_fd, size)
            is_new = True
        elif not files.is_named(name, blob.identity, use.fill_fd):
            log.error("files of %s were changed while it was in use: nothing is recorded", name)
            may_record = False
        if is_new:
            self.orphans.stop_holding(oid)
            if use.pages_fd >= 0:
                os.close(use.pages_fd)
            use.pages_fd = shared_map(size)
            self._park.keep(f"pages.{oid}", use.pages_fd)
            if left is not None:
                left.pages_fd = use.pages_fd
        nchunks, fd = blob.chunks.nchunks, use.fill_fd
        record = files.open_chunk_map(name, nchunks, fd) if may_record else None
        if blob.chunks.cct:
            files.keep_blob_meta(name, blob.chunks.cct, blob.chunks.header)
        obj = CacheObject(
            oid, name, blob.chunks, source, self._core, self._fetcher,
            (left and left.pages) or PageMap(size, use.pages_fd), record, use.fill_fd,
        )  # fmt: skip
        if is_new:
            obj.load_presence(data_extents(use.fill_fd, size, MAX_EXTENTS))
        else:
            obj.trust_pages()
        if left is None or left.pages is None:
            status = os.fstat(use.fill_fd)
            self._core.add_object(
                oid, status.st_dev, status.st_ino, use.fill_fd, size, obj.pages.memory
            )
        obj.watch()
        return obj

    def _give_up(self, oid: int, use: _Use) -> None:
        for kind, fd in (("fill", use.fill_fd), ("pages", use.pages_fd)):
            if fd >= 0:
                self._park.drop(f"{kind}.{oid}")
                os.close(fd)

    def _put_back(self, obj: CacheObject, use: _Use) -> None:
        """A mount reads the file, though it could not be bound: it must not see holes."""
        with self._lock:
            self._numbers[obj.name] = obj.oid
            self.orphans.put_back(obj.oid, use.fill_fd, use.pages_fd)

    def _claim(self, blob_id: str, identity: str) -> str:
        """With the lock.  A name whose last user is still leaving comes free soon."""

        def free() -> str | None:
            in_use = {name: use.identity for name, use in self._uses.items()}
            name = claim_name(blob_id, identity, in_use, self._numbers)
            return None if name in self._leaving or name in self._loans else name

        until = time.monotonic() + LEAVE_PATIENCE_S
        while (name := free()) is None:
            if time.monotonic() > until:
                raise DaemonError(f"blob {blob_id} is still being closed", hint="try again")
            self._gone.wait(LOAN_S)  # the end of a loan is not notified
        return name

    def number_kernel(self, kernel_object: int, fd: int, size: int) -> tuple[int, PageMap]:
        """(number, page map) of a cache file of the kernel's, which the C core knows from now on.

        The core owns ``fd``; the page map must outlive the object.
        """
        oid, pages = self.next_number(), PageMap(size)
        self._core.add_object(oid, 0, 0, fd, size, pages.memory, aligned=True)
        self._core.bind_kernel(oid, kernel_object, fd)
        return oid, pages

    def add_kernel(
        self,
        name: str,
        blob: ImageBlob,
        backend: Backend,
        kernel_object: int,
        fd: int,
        held: tuple[int, PageMap] | None = None,
    ) -> CacheObject:
        """The object of a blob over a cache file of the kernel's (cachefiles OPEN).

        ``held``: its number and page map, when the C core knows it already.
        """
        with self._lock:
            if name in self._uses:
                raise CacheDirError(f"{name} is open already", hint="a fault of the kernel")
            oid, pages = held or self.number_kernel(kernel_object, fd, blob.chunks.flat_size)
            source = Source(backend, blob.info.blob_id)
            obj = CacheObject(
                oid, name, blob.chunks, source, self._core, self._fetcher, pages, None, fd
            )
            obj.presence_known = False
            self._uses[name] = use = _Use(blob.identity, [source])
            use.object = obj
            obj.is_kernels = True
            obj.share(self.copies)
            self.copies.add(obj, blob.identity)
            self._by_oid[oid] = obj
            return obj

    def add_source(self, obj: CacheObject, source: Source) -> None:
        """The newest image's credentials are the best."""
        with self._lock:
            use = self._uses.get(obj.name)
            if use is not None:
                use.sources = [s for s in use.sources if s.backend is not source.backend]
                use.sources.append(source)
                obj.source = source

    def leave(self, backend: Backend) -> None:
        """No image has it any more: what others use too comes from theirs from now on."""
        with self._lock:
            for use in self._uses.values():
                left = [s for s in use.sources if s.backend is not backend]
                if left:
                    use.sources = left
                    use.object.source = left[-1]

    def names(self) -> list[str]:
        """Of cache files that are open."""
        with self._lock:
            return [*self._uses, *(n for n, oid in self._numbers.items() if oid in self.orphans)]

    def evict(self, name: str) -> bool:
        """Delete what is cached under a name, unless it is in use."""
        with self._lock:
            if self._is_used(name):
                return False
            self._store.blobs.forget(name)
            self.copies.forget(name)
            return True

    @contextlib.contextmanager
    def lend(self, name: str, patience: float) -> Iterator[bool]:
        """Does nobody have the blob's files open?  Then nobody opens, marks or deletes them until
        this ends; others may read them too.  Waits ``patience`` seconds at most."""
        lent = self._lock.acquire(timeout=max(0.0, patience))
        if lent:
            try:
                lent = name in self._loans or not (self._is_used(name) or self._is_left(name))
                if lent:
                    self._loans.append(name)
            finally:
                self._lock.release()
        try:
            yield lent
        finally:
            if lent:
                self._loans.remove(name)  # without the lock, so that no reader waits for it

    def _is_used(self, name: str) -> bool:
        if name in self._leaving or name in self._loans or name in self._uses:
            return True
        return name in self._numbers and self._numbers[name] in self.orphans

    def _is_left(self, name: str) -> bool:
        """Is the file left by an earlier service, without its number being known?  It is marked."""
        status = self._store.blobs.status(name)
        return status is not None and bool(
            self.orphans.find(lambda fd: os.path.samestat(os.fstat(fd), status))
        )

    def identity(self, name: str) -> str | None:
        with self._lock:
            use = self._uses.get(name)
            return use.identity if use else None

    def release(self, obj: CacheObject, unmark: Callable[[int], object] | None = None) -> None:
        """One image less uses it; with the last it is closed, and ``unmark`` called before, with
        its descriptor.  The name is free for others when all of that is done."""
        with self._lock:
            use = self._uses[obj.name]
            use.images -= 1
            if use.images:
                return
            del self._uses[obj.name]
            self._leaving.add(obj.name)
        try:
            self.copies.remove(obj)
            obj.close(deadline=time.monotonic() + CLOSE_PATIENCE_S)
            with self._lock:
                self._grown += _growth(use)
                self._by_oid.pop(obj.oid, None)
                closed = self._closed.setdefault(obj.source.backend.name, Counters())
                closed.add(obj.counters)
            if use.fill_fd >= 0:
                touch(self._store.blobs.directory, obj.name)
                if unmark is not None and not is_sole_open(use.fill_fd):
                    self._put_back(obj, use)
                    return
                if unmark is not None:
                    unmark(use.fill_fd)
            self._give_up(obj.oid, use)
        finally:
            with self._lock:
                self._leaving.discard(obj.name)
                self._gone.notify_all()

    def close(self) -> None:
        self.copies.close()
