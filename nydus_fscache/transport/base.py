"""What the service asks of a transport, whatever the kernel interface.

A third dialect (one that answers with bytes) implements the same methods: it
is told which images are bound, and turns what the kernel asks into
``CacheObject.demand`` by way of the C core's events.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from nydus_fscache.core.core import Event
from nydus_fscache.fetch.cache_object import CacheObject
from nydus_fscache.image.image import Image


class Bound(Protocol):
    """An image as a transport serves it."""

    @property
    def objects(self) -> list[CacheObject]: ...


class Transport(Protocol):
    name: str

    def bind(self, image: Image, fsid: str, domain: str) -> Bound:
        """Make all of the image's blobs servable; nothing is mounted yet."""
        ...

    def mount(self, image: Image, bound: Bound, target: Path, fsid: str, domain: str) -> None:
        """Mount a bound image; returns when it is ready to read."""
        ...

    def in_use(self, image: Image, fsid: str, domain: str) -> bool:
        """Does the kernel still hold the image's superblock (overlay, lazy umount, ...)?"""
        ...

    def unbind(self, image: Image, bound: Bound, fsid: str, domain: str) -> None:
        """Give up what ``bind`` made; only when it is not in use."""
        ...

    def resume(self) -> None:
        """Take up what a predecessor had not answered: all is bound again that could be at once,
        and the core is to settle its journal and to run next."""
        ...

    def hold(self, domains: set[str]) -> None:
        """Who reads what is not bound waits, for images of these domains are bound soon."""
        ...

    def deny(self) -> None:
        """They have waited for too long: EIO for them, and for who comes later."""
        ...

    def handle(self, event: Event) -> None:
        """An event that is of this dialect only."""
        ...

    def close(self) -> None:
        """Nothing is mounted and the core has stopped: the service ends for good."""
        ...
