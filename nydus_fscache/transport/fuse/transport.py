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
import time
from collections.abc import Collection, Mapping
from dataclasses import field
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
from nydus_fscache.kernel.mount import erofs_has_device_table
from nydus_fscache.transport.base import Bound
from nydus_fscache.transport.fuse.connection import (
    FLAT,
    FLAT_NODE,
    PREFIX,
    Shape,
    is_alive,
    node_of,
    number_of,
    number_of_name,
    open_device,
)
from nydus_fscache.transport.fuse.mount_image import mount_apart
from nydus_fscache.transport.fuse.second_copies import Files, SecondCopies
from rafs_v6 import Bootstrap, ImageError
from rafs_v6.tools.flatten import flatten
from rafs_v6.values import dataclass

log = logging.getLogger("fuse")

BOOTSTRAPS = 1 << 30  # object numbers of bootstraps: this and the connection's


@dataclass(slots=True)
class BoundImage:
    """``objects``: in the order of the device table.  ``pages``, ``fd``: of the bootstrap as an
    object; ``tree``: in memory, for the shape that shows it; ``starts``: of all ``numbers`` in one
    file, for a kernel without device tables."""

    image: Image
    address: Address
    objects: list[CacheObject]
    number: int
    fd: int = -1
    pages: PageMap | None = None
    tree: mmap.mmap | None = None
    starts: list[int] = field(default_factory=list)

    @property
    def bootstrap(self) -> int:
        return BOOTSTRAPS + self.number

    @property
    def numbers(self) -> list[int]:
        """Of all objects, which are the names of their files."""
        return [self.bootstrap, *(obj.oid for obj in self.objects)]


def _flattened(path: Path) -> tuple[int, list[int]]:
    """(descriptor of a file without a name, where everything begins) of a valid bootstrap."""
    bootstrap = Bootstrap.from_file(path)
    try:
        data, starts = flatten(bootstrap)
    except ImageError as e:
        raise KernelRefused(str(e), hint="mount it with --transport fuse-tree") from e
    finally:
        bootstrap.close()
    fd = os.memfd_create("nydus-fscache-bootstrap", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as f:
            f.write(data)
    except OSError:
        os.close(fd)
        raise
    return fd, [0, *starts]


class FuseTransport:
    """``_connections``: descriptors by number, of what is bound and of what was inherited."""

    def __init__(self, core: Core, objects: Objects, park: Park, shape: Shape) -> None:
        self.name = shape.value
        self._shape = shape
        self._is_flat = shape is Shape.LOOP and not erofs_has_device_table()
        self._core = core
        self._objects = objects
        self._park = park
        self._lock = threading.Lock()
        self._connections: dict[int, int] = {}
        self._attached: set[int] = set()
        self._bound: dict[int, BoundImage] = {}
        self._copies = SecondCopies()
        for name in [name for name in park.inherited if shape.has(number_of_name(name))]:
            number, fd = number_of_name(name), park.take(name)
            if fd is None:
                continue
            if is_alive(fd):
                self._connections[number] = fd
                self._attach(number, None)  # what it shows comes when it is bound
            else:
                park.drop(name)
                os.close(fd)

    def _attach(self, number: int, bound: BoundImage | None) -> None:
        device = -1 if number in self._attached else self._connections[number]
        if self._shape is Shape.TREE:
            tree, objects = (bound.tree, bound.objects) if bound is not None else (None, [])
            self._core.attach_fuse_tree(number, device, tree, [obj.oid for obj in objects])
        elif self._is_flat:
            numbers, starts = (bound.numbers, bound.starts) if bound is not None else ([], [])
            self._core.attach_fuse_flat(number, device, numbers, starts)
        else:
            self._core.attach_fuse(number, device)
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
            if number in self._attached and (self._is_flat or self._shape is Shape.TREE):
                self._attach(number, bound)
        except BaseException:
            if not inherited:  # else its readers wait: it is tried again
                self._disconnect(number)
            self._release(bound)
            raise
        with self._lock:
            self._bound[number] = bound
        self._core.look_again()
        return bound

    def _add_bootstrap(self, bound: BoundImage) -> None:
        image = bound.image
        if self._is_flat:
            bound.fd, bound.starts = _flattened(image.path)
        else:
            bound.fd = os.open(image.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        pages = PageMap(image.size)
        pages.set(0, -(-image.size // PAGE))
        self._core.add_object(bound.bootstrap, 0, 0, bound.fd, image.size, pages.memory)
        bound.pages = pages

    def check_can_mount(self) -> None:
        if not self._core.started:  # nobody would answer; it is tried again when it runs
            raise DaemonError("the event core does not run yet", hint="wait a moment")

    def mount(self, bound: Bound, target: Path) -> None:
        assert isinstance(bound, BoundImage)
        self.check_can_mount()
        names: list[str] = []
        if self._shape is not Shape.TREE:
            names = [FLAT] if self._is_flat else [str(oid) for oid in bound.numbers]
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
        with self._lock:
            self._bound.pop(bound.number, None)
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

    def tidy(self) -> None:
        if self._shape is Shape.TREE:
            return
        with self._lock:  # until the process has its own descriptors
            images = [
                Files(
                    number,
                    self._connections[number],
                    [FLAT_NODE] if self._is_flat else [node_of(oid) for oid in bound.numbers],
                    all(obj.complete for obj in bound.objects),
                )
                for number, bound in self._bound.items()
                if number in self._attached
            ]
            self._copies.look(images, self._core.stats().events, time.monotonic())

    def close(self) -> None:
        """Connections end with their superblocks."""
