"""cachefiles objects whose descriptors are with the keeper, and which outlive the service so.

A kernel without ``restore`` opens no object a second time: a READ can be answered only by
the descriptor that came with the OPEN.  It goes to the keeper as ``object.KERNEL_OBJECT``;
its key is on record in the journal (csrc/core/journal.h), because names at systemd are short.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from dataclasses import field, replace

from nydus_fscache.cache.presence import PageMap
from nydus_fscache.core.core import Core
from nydus_fscache.core.events import Inherited, Opened
from nydus_fscache.core.park import Park
from rafs_v6.values import dataclass

log = logging.getLogger("cachefiles")

_PREFIX = "object."


def domain_of(event: Opened) -> str:
    return event.volume.removeprefix("erofs,")


@dataclass(slots=True)
class UnboundObject:
    """An object that no image is bound for, as the C core knows it: nothing of it is there.

    ``misses``: offset and length of what readers wait for."""

    event: Opened
    size: int  # of the kernel's file: whole pages
    pages: PageMap
    misses: list[tuple[int, int]] = field(default_factory=list)


class ParkedObjects:
    """The objects that an earlier service left, until somebody takes it.

    ``asked``: OPENs that it may not have answered; ``lost``: those whose descriptor died with it.
    """

    def __init__(self, core: Core, park: Park) -> None:
        self._core = core
        self._park = park
        self.asked: list[Opened] = []
        self.lost: list[Opened] = []
        self._objects: list[Opened] = []
        closed = {e.kernel_object for e in core.inherited(Inherited.CLOSED)}
        asked = {e.kernel_object: e for e in core.inherited(Inherited.ASKED)}
        for event in core.inherited(Inherited.OBJECTS):
            kernel_object = event.kernel_object
            fd = park.take(f"{_PREFIX}{kernel_object}")
            if fd is None:
                core.forget_kernel(kernel_object)
            elif kernel_object in closed:
                self.let_go(kernel_object)
                os.close(fd)
            elif kernel_object in asked:
                self.asked.append(replace(asked.pop(kernel_object), fd=fd))
            else:
                self._objects.append(replace(event, fd=fd))
        self.lost += asked.values()
        for name in [n for n in park.inherited if n.startswith(_PREFIX)]:
            fd = park.take(name)  # its key is not on record: the kernel has closed it
            park.drop(name)
            if fd is not None:
                os.close(fd)
        core.keep_by(park.direct())

    def keep(self, event: Opened) -> None:
        self._park.keep(f"{_PREFIX}{event.kernel_object}", event.fd)

    def let_go(self, kernel_object: int) -> None:
        """Before its descriptor is closed here."""
        self._park.drop(f"{_PREFIX}{kernel_object}")
        self._core.forget_kernel(kernel_object)

    def take(self, domain: str, cookies: Collection[str]) -> list[Opened]:
        """The open objects of these names."""
        found = [e for e in self._objects if domain_of(e) == domain and e.cookie in cookies]
        self._objects = [e for e in self._objects if e not in found]
        return found

    def take_all(self) -> list[Opened]:
        found, self._objects = self._objects, []
        return found
