"""fanotify pre-content as a kind of transport."""

from __future__ import annotations

from pathlib import Path

from nydus_fscache.cache.evict import EvictionSource
from nydus_fscache.cache.store import Store
from nydus_fscache.core.core import Core
from nydus_fscache.core.park import Park
from nydus_fscache.fetch.objects import Objects
from nydus_fscache.image.binding import Binding
from nydus_fscache.kernel.leases import try_write_lease
from nydus_fscache.kernel.probe import Finding
from nydus_fscache.transport.fanotify import probe
from nydus_fscache.transport.fanotify.transport import GROUP, NAME, FanotifyTransport


class FanotifyDialect:
    name = NAME
    needs_erofs = True

    def __init__(self, store: Store) -> None:
        self._images = store.images

    @staticmethod
    def probe(root: Path) -> Finding:
        return probe.fanotify(root)

    def open(self, core: Core, objects: Objects, park: Park) -> FanotifyTransport:
        return FanotifyTransport(core, objects, park)

    def sources(self) -> list[EvictionSource]:
        return []

    def was_left(self, park: Park) -> bool:
        return GROUP in park.inherited

    def holds(self, binding: Binding, park: Park) -> bool:
        """The superblock holds the bootstrap open for as long as it lives."""
        return not try_write_lease(self._images / f"{binding.digest}.boot")

    def is_useless(self, binding: Binding, park: Park) -> bool:
        """Without the group nobody was asked: readers have seen holes as zeros, cached pages may
        be wrong, and the files raise no events any more."""
        return not self.was_left(park)
