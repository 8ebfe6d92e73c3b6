"""FUSE, in one of three shapes (connection.py): under the kernel's EROFS, where the image's files
are files of a FUSE file system on which EROFS is mounted, or instead of it.

A READ of FUSE asks for a range of objects, and its answer carries the bytes; data that are there
are answered in C, and so is all that is asked of a tree.  Under EROFS the bootstrap is an object
like the blobs.  Where nobody answers, readers get errors, never zeros.

Each image has a connection of its own, which ends when the kernel lets go of its superblock.
Facts that the order of steps depends on (reference stock-kernels 4, 8): the descriptor is with
the keeper before it is mounted; it can be served only after; and whatever waits for an answer must
be in another process (mount_image.py).
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nydus_fscache.cache.presence import PAGE, PageMap
from nydus_fscache.core.core import Core
from nydus_fscache.core.events import Event
from nydus_fscache.core.park import Park
from nydus_fscache.errors import DaemonError, KernelRefused, UsageError
from nydus_fscache.fetch.cache_object import CacheObject
from nydus_fscache.fetch.objects import Objects
from nydus_fscache.image.binding import Address
from nydus_fscache.image.image import Image
from nydus_fscache.transport.base import Bound
from nydus_fscache.transport.fuse.connection import (
    PREFIX,
    Shape,
    is_alive,
    number_of,
    number_of_name,
    open_device,
)
from nydus_fscache.transport.fuse.mount_image import mount_apart

log = logging.getLogger("fuse")

BOOTSTRAPS = 1 << 30  # object numbers of bootstraps: this and the connection's


@dataclass(slots=True)
class BoundImage:
    """``objects``: in the order of the device table.  ``pages``, ``fd``: of the bootstrap as an
    object; ``tree``: in memory, for the shape that shows it."""

    image: Image
    address: Address
    objects: list[CacheObject]
    number: int
    fd: int = -1
    pages: PageMap | None = None
    tree: mmap.mmap | None = None

    @property
    def bootstrap(self) -> int:
        return BOOTSTRAPS + self.number


class FuseTransport:
    """``_connections``: descriptors by number, of what is bound and of what was inherited."""

    def __init__(self, core: Core, objects: Objects, park: Park, shape: Shape) -> None:
        self.name = shape.value
        self._shape = shape
        self._core = core
        self._objects = objects
        self._park = park
        self._lock = threading.Lock()
        self._connections: dict[int, int] = {}
        self._attached: set[int] = set()
        for name in [name for name in park.inherited if shape.has(number_of_name(name))]:
            number, fd = number_of_name(name), park.take(name)
            if fd is None:
                continue
            if is_alive(fd):
                self._connections[number] = fd
                self._attach(number, None)  # a tree comes when it is bound
            else:
                park.drop(name)
                os.close(fd)

    def _attach(self, number: int, bound: BoundImage | None) -> None:
        device = self._connections[number]
        if self._shape is not Shape.TREE:
            self._core.attach_fuse(number, device)
        elif bound is None:
            self._core.attach_fuse_tree(number, device, None, [])
        else:
            objects = [obj.oid for obj in bound.objects]
            known = number in self._attached
            self._core.attach_fuse_tree(number, -1 if known else device, bound.tree, objects)
        self._attached.add(number)

    def new_address(self, digest: str, taken: Collection[Address]) -> Address:
        with self._lock:
            numbers = {*self._connections, *map(number_of, taken)}
        return {"number": str(self._shape.free_number(numbers))}

    def user_address(self, request: Mapping[str, Any]) -> Address:
        raise UsageError(
            "over fuse only the daemon can mount an image", hint="use nydus-fscache mount"
        )

    def bind(self, image: Image, address: Address) -> BoundImage:
        number = number_of(address)
        if not self._shape.has(number):
            raise KernelRefused(f"no such way of FUSE: {address}", hint="mount the image anew")
        bound = BoundImage(image, address, [], number)
        with self._lock:
            inherited = number in self._connections
        try:
            for blob in image.blobs:
                bound.objects.append(self._objects.open_file(blob, image.backend))
            if self._shape is Shape.TREE:
                with image.path.open("rb") as f:
                    bound.tree = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
            else:
                self._add_bootstrap(bound)
            with self._lock:
                if number not in self._connections:
                    self._connections[number] = device = open_device()
                    self._park.keep(f"{PREFIX}{number}", device)
            if number in self._attached and self._shape is Shape.TREE:
                self._attach(number, bound)
        except BaseException:
            if not inherited:  # else its readers wait: it is tried again
                self._disconnect(number)
            self._release(bound)
            raise
        self._core.look_again()
        return bound

    def _add_bootstrap(self, bound: BoundImage) -> None:
        image = bound.image
        bound.fd = os.open(image.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        pages = PageMap(image.size)
        pages.set(0, -(-image.size // PAGE))
        self._core.add_object(bound.bootstrap, 0, 0, bound.fd, image.size, pages.memory)
        bound.pages = pages

    def mount(self, bound: Bound, target: Path) -> None:
        assert isinstance(bound, BoundImage)
        if not self._core.started:  # nobody would answer; it is tried again when it runs
            raise DaemonError("the event core does not run yet", hint="wait a moment")
        names: list[str] = []
        if self._shape is not Shape.TREE:
            names = [str(oid) for oid in (bound.bootstrap, *(obj.oid for obj in bound.objects))]
        device = self._connections[bound.number]
        mount_apart(
            self._shape, device, str(target), names, lambda: self._attach(bound.number, bound)
        )

    def in_use(self, bound: Bound, mounted: Collection[Bound]) -> bool:
        return self.is_alive(number_of(bound.address))

    def is_independent(self, bound: Bound) -> bool:
        """Never: pages that the kernel drops are asked for again."""
        return False

    def is_alive(self, number: int) -> bool:
        with self._lock:
            return number in self._connections and is_alive(self._connections[number])

    def unbind(self, bound: Bound) -> None:
        assert isinstance(bound, BoundImage)
        self._disconnect(bound.number)
        self._release(bound)

    def _disconnect(self, number: int) -> None:
        with self._lock:
            device = self._connections.pop(number, -1)
        if number in self._attached:
            self._attached.discard(number)
            self._core.detach_fuse(number)
        if device >= 0:
            self._park.drop(f"{PREFIX}{number}")
            os.close(device)

    def _release(self, bound: BoundImage) -> None:
        if bound.pages is not None:
            self._core.remove_object(bound.bootstrap)
            bound.pages.close()
        if bound.tree is not None:
            bound.tree.close()
        if bound.fd >= 0:
            os.close(bound.fd)
        for obj in bound.objects:
            # the other transport's mark goes too, where a mount of its own had the blob before
            self._objects.release(obj, self._objects.orphans.unmark)

    def resume(self) -> None:
        """The journal has all that an earlier service left; the core settles it."""

    def hold(self, awaited: Collection[Address]) -> None:
        self._core.hold_fuse(hold=True)

    def fail_pending(self) -> None:
        self._core.hold_fuse(hold=False)

    def handle(self, event: Event) -> bool:
        return False  # all are of open objects

    def close(self) -> None:
        """Connections end with their superblocks."""
