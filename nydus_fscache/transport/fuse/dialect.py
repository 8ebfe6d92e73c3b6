"""FUSE as a kind of transport."""

from __future__ import annotations

from pathlib import Path

from nydus_fscache.cache.evict import EvictionSource
from nydus_fscache.cache.store import Store
from nydus_fscache.core.core import Core
from nydus_fscache.core.park import Park
from nydus_fscache.fetch.objects import Objects
from nydus_fscache.image.binding import Binding
from nydus_fscache.kernel.probe import Finding
from nydus_fscache.transport.fuse import probe
from nydus_fscache.transport.fuse.connection import PREFIX, is_alive, number_of
from nydus_fscache.transport.fuse.transport import NAME, FuseTransport


class FuseDialect:
    name = NAME

    def __init__(self, store: Store) -> None:
        self._opened: FuseTransport | None = None

    @staticmethod
    def probe(root: Path) -> Finding:
        return probe.fuse(root)

    def open(self, core: Core, objects: Objects, park: Park) -> FuseTransport:
        self._opened = FuseTransport(core, objects, park)
        return self._opened

    def sources(self) -> list[EvictionSource]:
        return []

    def was_left(self, park: Park) -> bool:
        return any(name.startswith(PREFIX) for name in park.inherited)

    def holds(self, binding: Binding, park: Park) -> bool:
        number = number_of(binding.address)
        if self._opened is not None:
            return self._opened.is_alive(number)
        fd = park.inherited.get(f"{PREFIX}{number}")
        return fd is not None and is_alive(fd)

    def is_useless(self, binding: Binding, park: Park) -> bool:
        """Without its connection every read is an error."""
        return not self.holds(binding, park)
