"""fanotify pre-content (Linux 6.14 and later).

Facts that the order of steps here depends on (reference kernel-transports 2):
a file fires only if it was marked before EROFS opened it, so marks come before
the mount; a descriptor opened after the mark fires when we write through it,
so the fill descriptor is opened first; the group lives in the keeper too,
because its last close lets waiting readers through.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from nydus_fscache.core.core import Core
from nydus_fscache.core.events import Event, ReadMiss
from nydus_fscache.core.park import Park
from nydus_fscache.errors import KernelRefused, UsageError
from nydus_fscache.fetch.cache_object import CacheObject
from nydus_fscache.fetch.objects import Objects
from nydus_fscache.image.binding import Address
from nydus_fscache.image.image import Image
from nydus_fscache.kernel.fanotify import mark_add, mark_remove, pre_content_group
from nydus_fscache.kernel.leases import is_sole_open, try_write_lease
from nydus_fscache.kernel.mount import mount_erofs
from nydus_fscache.kernel.mountinfo import MountId
from nydus_fscache.transport.base import Bound
from rafs_v6.values import dataclass

log = logging.getLogger("fanotify")

NAME = "fanotify"
GROUP = "fanotify"  # the group's name at the keeper, which knows what to do with it


@dataclass(frozen=True, slots=True)
class BoundFiles:
    """``objects``: cache files in the order of the device table."""

    image: Image
    address: Address
    objects: list[CacheObject]


class FanotifyTransport:
    name = NAME

    def __init__(self, core: Core, objects: Objects, park: Park) -> None:
        inherited = park.take(GROUP)
        if inherited is None:
            self._group = pre_content_group()
            park.keep(GROUP, self._group)
        else:
            self._group = inherited
        self._objects = objects
        objects.orphans.unmark = self._remove_mark
        core.attach_fanotify(self._group)

    def new_address(self, digest: str, taken: Collection[Address]) -> Address:
        return {}  # the cache files are named by their blobs

    def user_address(self, request: Mapping[str, Any]) -> Address:
        raise UsageError(
            "over fanotify only the daemon can mount an image", hint="use nydus-fscache mount"
        )

    def bind(self, image: Image, address: Address) -> BoundFiles:
        opened: list[CacheObject] = []
        try:
            for blob in image.blobs:
                obj = self._objects.open_file(blob, image.backend)
                opened.append(obj)
                obj.on_settled = self._unmark
                if not obj.is_settled:
                    self._mark(obj)
        except BaseException:
            for obj in opened:
                self._objects.release(obj, self._remove_mark)
            raise
        return BoundFiles(image, address, opened)

    def check_can_mount(self) -> None:
        """Always: the sooner, the fewer zeros are read."""

    def mount(self, bound: Bound, target: Path) -> MountId:
        source = os.open(bound.image.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return mount_erofs(source, [obj.fill_fd for obj in bound.objects], target)
        finally:
            os.close(source)

    def in_use(self, bound: Bound, mounted: Collection[Bound]) -> bool:
        """The superblock holds the bootstrap open for as long as it lives, and all mounts of an
        image have one file: while one is there, nothing can be told of the others.  Where somebody
        moved or deleted it, the cache files tell, which other images may use too."""
        path = bound.image.path
        if any(other.image.path == path for other in mounted):
            return False
        if self._objects.is_in_place() and path.exists():
            return not try_write_lease(path)
        return any(not is_sole_open(obj.fill_fd) for obj in bound.objects)

    def is_independent(self, bound: Bound) -> bool:
        """The files are complete and bear no mark."""
        return all(obj.is_settled for obj in bound.objects)

    def unbind(self, bound: Bound) -> None:
        for obj in bound.objects:
            self._objects.release(obj, self._remove_mark)

    def _mark(self, obj: CacheObject) -> None:
        mark_add(self._group, obj.fill_fd)
        if obj.is_settled:  # the last unit was recorded between the caller's look and the mark
            self._unmark(obj)

    def _unmark(self, obj: CacheObject) -> None:
        """All is there for good: from now on the kernel reads the file without asking."""
        log.info("blob %s is complete", obj.name)
        self._remove_mark(obj.fill_fd)

    def _remove_mark(self, fd: int) -> None:
        try:
            mark_remove(self._group, fd)
        except KernelRefused as e:
            log.debug("mark was gone: %s", e)

    def resume(self) -> None:
        """The journal has all that an earlier service left; the core settles it."""

    def hold(self, awaited: Collection[Address]) -> None:
        self._objects.orphans.hold()

    def fail_pending(self) -> None:
        self._objects.orphans.fail_pending()

    def handle(self, event: Event) -> bool:
        return isinstance(event, ReadMiss) and self._objects.orphans.missed(
            event.object, event.off, event.len
        )

    def tidy(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """The group ends with its last descriptor, which is the keeper's."""
