"""What the daemon consists of below its mounts, made in the one order that is safe."""

from __future__ import annotations

import os
from pathlib import Path

from nydus_fscache.api.client import CACHEFILES
from nydus_fscache.backend.base import Backend
from nydus_fscache.cache.evict import OwnFiles
from nydus_fscache.cache.quota import Quota
from nydus_fscache.cache.store import Store
from nydus_fscache.core.core import Core
from nydus_fscache.core.journal import journal_memory
from nydus_fscache.fetch.objects import Objects
from nydus_fscache.fetch.prefetch import Prefetcher
from nydus_fscache.fetch.queue import Fetcher
from nydus_fscache.fetch.trace import Tracer
from nydus_fscache.handover import state
from nydus_fscache.handover.link import Handover
from nydus_fscache.handover.orphans import Orphans
from nydus_fscache.image.open_images import OpenImages
from nydus_fscache.transport.registry import Transports

CACHE_LIMIT = "NYDUS_FSCACHE_CACHE_LIMIT"  # serve --cache-limit, bytes


class Engine:
    """The parts, each thread-safe.  ``state``: as an earlier service left it."""

    def __init__(self, root: Path, handover: Handover) -> None:
        self.handover = handover
        # before anything else is opened: it occupies the numbers of events that wait
        self.core = Core(journal_memory(handover))
        is_first = "lock" not in handover.inherited
        cachefiles = os.environ.get(CACHEFILES)
        self.store = Store(
            root, handover.take("lock"), Path(cachefiles) if cachefiles else None
        )
        handover.keep("lock", self.store.lock)  # free only when the keeper has ended too
        self.state_path = root / "state.json"
        self.state = state.load(self.state_path)
        # the limit that was given last holds, and a restart of the service gives none
        if is_first and (limit := os.environ.get(CACHE_LIMIT)):
            self.state.cache_limit = int(limit)
            self.state.save(self.state_path)
        self.fetcher = Fetcher(self.core.trim)
        self.orphans = Orphans(self.core, handover)
        self.objects = Objects(
            self.store, self.core, self.fetcher, handover, self.orphans, self.state.numbers
        )
        self.transports = Transports(self.core, self.objects, handover, self.store)
        ours = OwnFiles(self.store.blobs.directory, self.objects.names, self.objects.evict)
        self.quota = Quota(
            self.store,
            [ours, *self.transports.sources()],
            self.fetcher.disk_full,
            self.objects.grown,
            self.state.cache_limit,
        )
        self.tracer = Tracer(self.core, self.store.images)
        self.prefetcher = Prefetcher(self.fetcher, self.tracer)
        self.images = OpenImages(self.store.bootstraps, self._leave)

    def _leave(self, backend: Backend) -> None:
        """No image has it any more."""
        self.objects.leave(backend)
        self.fetcher.forget(backend)
