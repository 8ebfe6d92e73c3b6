"""What the service asks of a transport, whatever the kernel's interface is.

A transport has two halves.  A ``Presenter`` makes a file system of an image and knows when the
kernel has let go of it; an ``EventSource`` turns what the kernel asks into
``CacheObject.demand`` by way of the C core's events.  Neither supposes a mark, a fill descriptor
or a domain: what a transport needs in order to find its image again is its ``Address``.

To add one: a folder beside these with a ``Dialect``, one line in registry.py, and a C file that
implements the core's half (csrc/core).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from nydus_fscache.cache.evict import EvictionSource
from nydus_fscache.cache.store import Store
from nydus_fscache.core.core import Core
from nydus_fscache.core.events import Event
from nydus_fscache.core.park import Park
from nydus_fscache.fetch.cache_object import CacheObject
from nydus_fscache.fetch.objects import Objects
from nydus_fscache.image.binding import Address, Binding
from nydus_fscache.image.image import Image
from nydus_fscache.kernel.mountinfo import MountId
from nydus_fscache.kernel.probe import Finding


class Bound(Protocol):
    """An image as a transport serves it.  ``objects``: of its blobs, those that are open."""

    @property
    def image(self) -> Image: ...

    @property
    def address(self) -> Address: ...

    @property
    def objects(self) -> list[CacheObject]: ...


class Presenter(Protocol):
    """How an image becomes a file system."""

    def new_address(self, digest: str, taken: Collection[Address]) -> Address:
        """For another mount of the image whose bootstrap has this sha256; none of ``taken``."""
        ...

    def user_address(self, request: Mapping[str, Any]) -> Address:
        """What the user names who mounts the image himself.

        Raises ``UsageError`` when the request does not name it, and when nobody but the daemon
        can mount over this transport.
        """
        ...

    def bind(self, image: Image, address: Address) -> Bound:
        """Make all of the image's blobs servable; nothing is mounted yet.  After a take-over: go
        on with what was inherited of it."""
        ...

    def check_can_mount(self) -> None:
        """Raises ``DaemonError`` when a mount would fail just now, so that one which shows errors
        only is better than none."""
        ...

    def mount(self, bound: Bound, target: Path) -> MountId | None:
        """Returns when it is ready to read.  The mount's name, where that is known at once."""
        ...

    def in_use(self, bound: Bound, mounted: Collection[Bound]) -> bool:
        """Does the kernel hold the image's superblock (overlay, lazy umount, ...), besides those
        of ``mounted``, which are known to be there?"""
        ...

    def is_independent(self, bound: Bound) -> bool:
        """Does the kernel serve it without us from now on, whatever of ours dies?  For good: what
        is complete and on record stays so."""
        ...

    def unbind(self, bound: Bound) -> None:
        """Give up what ``bind`` made; only when it is not in use."""
        ...


class EventSource(Protocol):
    """What the kernel asks, and who waits for the answer."""

    def resume(self) -> None:
        """Take up what an earlier service had not answered: all is bound again that could be at
        once, and the core is to settle its journal and to run next."""
        ...

    def hold(self, awaited: Collection[Address]) -> None:
        """Readers of what is not bound wait, for images of these addresses are bound soon."""
        ...

    def fail_pending(self) -> None:
        """They have waited for too long: EIO for them, and for later ones."""
        ...

    def handle(self, event: Event) -> bool:
        """An event that no open cache object took; False when it is not of this transport."""
        ...

    def tidy(self) -> None:
        """Once a second, and quickly: readers' deadlines wait for it."""
        ...

    def close(self) -> None:
        """Nothing is mounted and the core has stopped: the service ends for good."""
        ...


class Transport(Presenter, EventSource, Protocol):
    """Both halves, which share the kernel's descriptors."""


class Dialect(Protocol):
    """A kind of transport, whether or not it is in use.  To make one touches nothing."""

    name: str
    needs_erofs: bool  # in the kernel

    def __init__(self, store: Store) -> None: ...

    @staticmethod
    def probe(root: Path) -> Finding:
        """Does it work here, with the cache in ``root``?  Found by trying; leaves nothing."""
        ...

    def open(self, core: Core, objects: Objects, park: Park) -> Transport:
        """Take up what was inherited, or begin.  Raises ``KernelRefused``."""
        ...

    def sources(self) -> list[EvictionSource]:
        """What it caches besides the files of the cache directory."""
        ...

    def was_left(self, park: Park) -> bool:
        """Has an earlier service left descriptors of this transport?"""
        ...

    def holds(self, binding: Binding, park: Park) -> bool:
        """Does the kernel still have a superblock of it, though it is not mounted any more?"""
        ...

    def is_useless(self, binding: Binding, park: Park) -> bool:
        """Were service and keeper lost together, so that its mount shows holes or errors only,
        and a new one must take its place?"""
        ...
