"""The transports that are in use, each made when it is first asked for."""

from __future__ import annotations

import threading

from nydus_fscache.cache.objects import Objects
from nydus_fscache.cache.store import Store
from nydus_fscache.core import Core
from nydus_fscache.errors import UsageError
from nydus_fscache.handover import Handover
from nydus_fscache.probe import TRANSPORTS, choose
from nydus_fscache.transport.base import Transport
from nydus_fscache.transport.cachefiles import CachefilesTransport
from nydus_fscache.transport.fanotify import FanotifyTransport
from nydus_fscache.transport.kernel_cache import KernelCache


class Transports:
    """Thread-safe."""

    def __init__(self, core: Core, objects: Objects, handover: Handover, store: Store) -> None:
        self._core = core
        self._objects = objects
        self._handover = handover
        self._store = store
        self.kernel_cache = KernelCache(store.cachefiles)
        self._lock = threading.Lock()
        self._by_name: dict[str, Transport] = {}

    def get(self, name: str) -> Transport:
        with self._lock:
            if name not in self._by_name:
                if name == "fanotify":
                    self._by_name[name] = FanotifyTransport(
                        self._core, self._objects, self._handover
                    )
                else:
                    self._by_name[name] = CachefilesTransport(
                        self._core, self._objects, self._handover, self.kernel_cache
                    )
            return self._by_name[name]

    def in_use(self) -> dict[str, Transport]:
        with self._lock:
            return dict(self._by_name)

    def choose(self, wanted: str) -> str:
        """What is in use already is not probed again (a second open of the device is refused)."""
        if wanted != "auto" and wanted not in TRANSPORTS:
            raise UsageError(f"no transport {wanted!r}", hint=f"one of {', '.join(TRANSPORTS)}")
        known = self.in_use()
        in_use = [name for name in TRANSPORTS if name in known]
        if wanted in in_use or (wanted == "auto" and in_use):
            return wanted if wanted in in_use else in_use[0]
        return choose(self._store.root, wanted).transport
