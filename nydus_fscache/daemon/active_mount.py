"""An image that is bound, with what lives of it in this process: a value that is passed in."""

from __future__ import annotations

from dataclasses import field
from enum import Enum
from pathlib import Path
from typing import Any

from nydus_fscache.api.bodies import paths_in
from nydus_fscache.fetch.cache_object import CacheObject
from nydus_fscache.image.binding import Binding
from nydus_fscache.image.image import Image
from nydus_fscache.kernel.mountinfo import MountId
from nydus_fscache.transport.base import Bound
from rafs_v6.values import dataclass


class Phase(Enum):
    """Of the mount of an image; ``SUPERBLOCK``: unmounted, by whomever, and served for as long as
    the kernel has its superblock (open files, bind mounts, overlays, other namespaces)."""

    USERS = "bound"  # the user mounts it, and we are not told
    MOUNTING = "mounting"
    MOUNTED = "mounted"
    SUPERBLOCK = "unmounted"


@dataclass(slots=True, eq=False)
class ActiveMount:
    """An entry of ``state.json`` with what lives in this process; a ``prefetch.Loadable``.

    ``phase`` and ``mount`` are the mount table's to change (mounts.py)."""

    binding: Binding
    image: Image
    bound: Bound
    phase: Phase = Phase.MOUNTING
    mount: MountId | None = None
    paths: list[str] = field(init=False)  # that its backend may read

    def __post_init__(self) -> None:
        self.paths = paths_in(self.binding.backend)

    @property
    def mounted(self) -> bool:
        return self.phase is Phase.MOUNTED

    @property
    def name(self) -> str:
        return self.binding.source

    @property
    def digest(self) -> str:
        return self.binding.digest

    @property
    def bootstrap(self) -> Path:
        return self.image.path

    @property
    def objects(self) -> list[CacheObject]:
        return self.bound.objects

    @property
    def on_record(self) -> dict[str, Any]:
        return self.binding.prefetch

    @on_record.setter
    def on_record(self, prefetch: dict[str, Any]) -> None:
        self.binding.prefetch = prefetch

    @property
    def is_open(self) -> bool:
        """Are all its objects there?  Over cachefiles the kernel opens them one by one, and
        what it has of each is found out after that."""
        objects = self.bound.objects
        return len(objects) >= len(self.image.blobs) and all(o.presence_known for o in objects)
