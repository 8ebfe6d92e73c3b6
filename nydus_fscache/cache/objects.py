"""The cache objects that are open, by number and by name, counted by the images that use them."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from nydus_fscache.backend.base import Backend
from nydus_fscache.cache.evict import touch
from nydus_fscache.cache.fetch import Fetcher
from nydus_fscache.cache.object import CacheObject, Source
from nydus_fscache.cache.presence import PageMap
from nydus_fscache.cache.reuse import Copies
from nydus_fscache.cache.store import Store
from nydus_fscache.core import Core
from nydus_fscache.errors import CacheDirError, DaemonError
from nydus_fscache.handover import Handover
from nydus_fscache.image import ImageBlob

log = logging.getLogger("objects")

CLOSE_PATIENCE_S = 30.0


@dataclass(slots=True)
class _Use:
    object: CacheObject
    identity: str
    fill_fd: int  # -1: the kernel's, closed by the C core
    images: int = 1


class Objects:
    """Opens, shares and closes cache objects.  Thread-safe."""

    def __init__(
        self,
        store: Store,
        core: Core,
        fetcher: Fetcher,
        handover: Handover,
        numbers: Mapping[str, int],
    ) -> None:
        """``numbers``: object numbers by name that a predecessor gave; they stay the same."""
        self._store = store
        self._core = core
        self._fetcher = fetcher
        self._handover = handover
        self._lock = threading.RLock()
        self._uses: dict[str, _Use] = {}
        self._by_oid: dict[int, CacheObject] = {}
        self._numbers = dict(numbers)
        self._copies = Copies()
        self._next_oid = 1 + max(numbers.values(), default=0)

    def get(self, oid: int) -> CacheObject | None:
        return self._by_oid.get(oid)

    def all(self) -> list[CacheObject]:
        return list(self._by_oid.values())

    def numbers(self) -> dict[str, int]:
        """What a successor must know."""
        with self._lock:
            return {name: use.object.oid for name, use in self._uses.items()}

    def next_number(self) -> int:
        with self._lock:
            oid, self._next_oid = self._next_oid, self._next_oid + 1
            return oid

    def open_file(self, blob: ImageBlob, backend: Backend) -> CacheObject:
        """The object of a blob over a cache file of ours; shared when it is open already.

        A new one's fill descriptor is with the keeper when this returns, before
        anybody marks the file.
        """
        with self._lock:
            in_use = {name: use.identity for name, use in self._uses.items()}
            name = self._store.claim_name(blob.info.blob_id, blob.identity, in_use)
            source = Source(backend, blob.info.blob_id)
            if use := self._uses.get(name):
                use.images += 1
                use.object.source = source  # the newest image's credentials are the best
                return use.object
            oid = self._numbers.pop(name, 0) or self.next_number()
            fd = self._fill_descriptor(name, oid, blob.chunks.flat_size)
            pages, were_there = self._store.open_pages(name, blob.chunks.flat_size)
            record = self._store.open_chunk_map(name, blob.chunks.nchunks)
            if blob.chunks.cct:
                self._store.keep_blob_meta(name, blob.chunks.cct, blob.chunks.header)
            obj = CacheObject(
                oid, name, blob.chunks, source, self._core, self._fetcher, pages, record, fd
            )
            obj.load_presence(trust_pages=were_there)
            status = os.fstat(fd)
            self._core.add_object(
                oid, status.st_dev, status.st_ino, fd, blob.chunks.flat_size, pages.memory
            )
            self._uses[name] = _Use(obj, blob.identity, fd)
            touch(self._store.cache, name)
            obj.copies = self._copies
            self._copies.add(obj)
            self._by_oid[oid] = obj
            return obj

    def _fill_descriptor(self, name: str, oid: int, size: int) -> int:
        fd = self._handover.take(f"fill.{oid}")
        if fd is not None:
            if os.fstat(fd).st_size != size:
                raise DaemonError(f"cache file of {name} changed its size", hint="stop and start")
            return fd
        fd = self._store.open_data(name, size)
        self._handover.keep(f"fill.{oid}", fd)
        return fd

    def add_kernel(
        self, name: str, blob: ImageBlob, backend: Backend, kernel_object: int, fd: int
    ) -> CacheObject:
        """The object of a blob over a cache file of the kernel's (cachefiles OPEN)."""
        with self._lock:
            if name in self._uses:
                raise CacheDirError(f"{name} is open already", hint="a fault of the kernel")
            oid = self.next_number()
            pages = PageMap(None, blob.chunks.flat_size)
            source = Source(backend, blob.info.blob_id)
            obj = CacheObject(
                oid, name, blob.chunks, source, self._core, self._fetcher, pages, None, fd
            )
            self._core.add_object(
                oid, 0, 0, fd, blob.chunks.flat_size, pages.memory, aligned=True
            )
            self._core.bind_kernel(oid, kernel_object, fd)
            self._uses[name] = _Use(obj, blob.identity, -1)
            self._by_oid[oid] = obj
            return obj

    def names(self) -> list[str]:
        """Of cache files that are open."""
        with self._lock:
            return list(self._uses)

    def evict(self, name: str) -> bool:
        """Delete what is cached under a name, unless it is in use."""
        with self._lock:
            if name in self._uses:
                return False
            self._store.forget(name)
            return True

    def identity(self, name: str) -> str | None:
        with self._lock:
            use = self._uses.get(name)
            return use.identity if use else None

    def release(self, obj: CacheObject) -> bool:
        """One image less uses it; closed (and True) when it was the last."""
        with self._lock:
            use = self._uses[obj.name]
            use.images -= 1
            if use.images:
                return False
            del self._uses[obj.name]
        self._copies.remove(obj)
        obj.close(deadline=time.monotonic() + CLOSE_PATIENCE_S)
        self._by_oid.pop(obj.oid, None)
        if use.fill_fd >= 0:
            touch(self._store.cache, obj.name)
            self._handover.drop(f"fill.{obj.oid}")
            os.close(use.fill_fd)
        return True
