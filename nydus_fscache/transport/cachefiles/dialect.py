"""cachefiles on-demand as a kind of transport."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nydus_fscache.cache.evict import EvictionSource
from nydus_fscache.cache.store import Store
from nydus_fscache.core.core import Core
from nydus_fscache.core.park import Park
from nydus_fscache.fetch.objects import Objects
from nydus_fscache.image.binding import Binding
from nydus_fscache.kernel.probe import Finding
from nydus_fscache.transport.cachefiles import probe
from nydus_fscache.transport.cachefiles.device import DESCRIPTOR, NAME
from nydus_fscache.transport.cachefiles.domains import names_of
from nydus_fscache.transport.cachefiles.kernel_cache import KernelCache, is_held

if TYPE_CHECKING:
    from nydus_fscache.transport.cachefiles.transport import CachefilesTransport


class CachefilesDialect:
    name = NAME
    needs_erofs = True

    def __init__(self, store: Store) -> None:
        self._cache = KernelCache(store.cachefiles)

    @staticmethod
    def probe(root: Path) -> Finding:
        return probe.cachefiles(root)

    def open(self, core: Core, objects: Objects, park: Park) -> CachefilesTransport:
        # a node has one transport, and room for no other
        from nydus_fscache.transport.cachefiles.transport import (  # noqa: PLC0415
            CachefilesTransport,
        )

        return CachefilesTransport(core, objects, park, self._cache)

    def sources(self) -> list[EvictionSource]:
        return [self._cache]

    def was_left(self, park: Park) -> bool:
        return DESCRIPTOR in park.inherited

    def holds(self, binding: Binding, park: Park) -> bool:
        fsid, domain = names_of(binding.address)
        return is_held(domain or fsid, fsid, ())

    def is_useless(self, binding: Binding, park: Park) -> bool:
        """Readers got errors since, and the next ones will, but never zeros."""
        return False
