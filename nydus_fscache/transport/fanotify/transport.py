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
from dataclasses import dataclass
from pathlib import Path

from nydus_fscache.core.core import Core, Event
from nydus_fscache.errors import KernelRefused
from nydus_fscache.fetch.cache_object import CacheObject
from nydus_fscache.fetch.objects import Objects
from nydus_fscache.handover.link import Handover
from nydus_fscache.image.image import Image
from nydus_fscache.kernel import syscalls as kernel
from nydus_fscache.transport.base import Bound

log = logging.getLogger("fanotify")


@dataclass(frozen=True, slots=True)
class BoundFiles:
    """Cache files in the order of the device table."""

    objects: list[CacheObject]


class FanotifyTransport:
    name = "fanotify"

    def __init__(self, core: Core, objects: Objects, handover: Handover) -> None:
        inherited = handover.take("fanotify")
        if inherited is None:
            self._group = kernel.pre_content_group()
            handover.keep("fanotify", self._group)
        else:
            self._group = inherited
        self._objects = objects
        objects.left.unmark = self._remove_mark
        core.attach_fanotify(self._group)

    def bind(self, image: Image, fsid: str, domain: str) -> BoundFiles:
        opened: list[CacheObject] = []
        try:
            for blob in image.blobs:
                obj = self._objects.open_file(blob, image.backend)
                opened.append(obj)
                obj.on_complete = self._unmark
                if not obj.complete:
                    self._mark(obj)
        except BaseException:
            for obj in opened:
                self._objects.release(obj, self._remove_mark)
            raise
        return BoundFiles(opened)

    def mount(
        self, image: Image, bound: Bound, target: Path, fsid: str, domain: str
    ) -> None:
        source = os.open(image.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            kernel.mount_erofs(source, [obj.fill_fd for obj in bound.objects], target)
        finally:
            os.close(source)

    def in_use(self, image: Image, fsid: str, domain: str) -> bool:
        """The superblock holds the bootstrap open for as long as it lives."""
        return not kernel.try_write_lease(image.path)

    def unbind(self, image: Image, bound: Bound, fsid: str, domain: str) -> None:
        for obj in bound.objects:
            self._objects.release(obj, self._remove_mark)

    def _mark(self, obj: CacheObject) -> None:
        kernel.mark_add(self._group, obj.fill_fd)
        if obj.complete:  # the last unit came between the caller's look and the mark
            self._unmark(obj)

    def _unmark(self, obj: CacheObject) -> None:
        """All is there: from now on the kernel reads the file without asking."""
        log.info("blob %s is complete", obj.name)
        self._remove_mark(obj.fill_fd)

    def _remove_mark(self, fd: int) -> None:
        try:
            kernel.mark_remove(self._group, fd)
        except KernelRefused as e:
            log.debug("mark was gone: %s", e)

    def resume(self) -> None:
        """The journal has all that a predecessor left; the core settles it."""

    def hold(self, domains: set[str]) -> None:
        self._objects.left.hold()

    def deny(self) -> None:
        self._objects.left.deny()

    def handle(self, event: Event) -> None:
        raise AssertionError(f"no event of this dialect reaches Python: {event}")

    def close(self) -> None:
        """The group ends with its last descriptor, which is the keeper's."""
