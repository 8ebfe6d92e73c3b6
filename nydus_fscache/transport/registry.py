"""The transports that are in use, each made when it is first asked for."""

from __future__ import annotations

import contextlib
import threading

from nydus_fscache.cache.store import Store
from nydus_fscache.core.core import Core
from nydus_fscache.errors import FscacheError, UsageError
from nydus_fscache.fetch.objects import Objects
from nydus_fscache.handover.link import Handover
from nydus_fscache.kernel.probe import TRANSPORTS, choose
from nydus_fscache.transport.base import Transport
from nydus_fscache.transport.cachefiles.kernel_cache import KernelCache
from nydus_fscache.transport.cachefiles.transport import CachefilesTransport
from nydus_fscache.transport.fanotify.transport import FanotifyTransport


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
        self._probing = threading.Lock()
        self._automatic = ""  # what "auto" was found to be; a probe takes longer than a mount

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
        with self._probing:
            known = self.in_use()
            usable = [name for name in TRANSPORTS if name in known]
            if not usable and self._automatic:
                usable = [self._automatic]
            if wanted in usable or (wanted == "auto" and usable):
                return wanted if wanted in usable else usable[0]
            found = choose(self._store.root, wanted).transport
            if wanted == "auto":
                self._automatic = found
            return found

    def prepare(self) -> None:
        """Find out what "auto" is before a mount asks; where nothing works, the mount says why."""
        with contextlib.suppress(FscacheError):
            self.choose("auto")
