"""FUSE as kinds of transport: one for each shape."""

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
from nydus_fscache.transport.fuse import probe
from nydus_fscache.transport.fuse.connection import (
    PREFIX,
    Shape,
    is_alive,
    number_of,
    number_of_name,
)

if TYPE_CHECKING:
    from nydus_fscache.transport.fuse.transport import FuseTransport


class _FuseDialect:
    shape: Shape
    needs_erofs = True

    def __init__(self, store: Store) -> None:
        self._opened: FuseTransport | None = None

    @classmethod
    def probe(cls, root: Path) -> Finding:
        return probe.probe(cls.shape)

    def open(self, core: Core, objects: Objects, park: Park) -> FuseTransport:
        # a node has one transport, and room for no other
        from nydus_fscache.transport.fuse.transport import FuseTransport  # noqa: PLC0415

        self._opened = FuseTransport(core, objects, park, self.shape)
        return self._opened

    def sources(self) -> list[EvictionSource]:
        return []

    def was_left(self, park: Park) -> bool:
        return any(self.shape.has(number_of_name(name)) for name in park.inherited)

    def holds(self, binding: Binding, park: Park) -> bool:
        number = number_of(binding.address)
        if self._opened is not None:
            return self._opened.is_alive(number)
        fd = park.inherited.get(f"{PREFIX}{number}")
        return fd is not None and is_alive(fd)

    def is_useless(self, binding: Binding, park: Park) -> bool:
        """Without its connection every read is an error."""
        return not self.holds(binding, park)


class FuseFileDialect(_FuseDialect):
    name = Shape.FILE.value
    shape = Shape.FILE


class FuseLoopDialect(_FuseDialect):
    name = Shape.LOOP.value
    shape = Shape.LOOP


class FuseTreeDialect(_FuseDialect):
    name = Shape.TREE.value
    shape = Shape.TREE
    needs_erofs = False
