"""Limits of the cache: blobs by size, images by number, room on a disk that was full.

Nothing here is an error of a reader: a limit that cannot be kept is logged.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from nydus_fscache.cache.evict import EvictionSource, Evictor
from nydus_fscache.cache.store import Store
from nydus_fscache.image import kept_files as images
from nydus_fscache.image.binding import Binding
from nydus_fscache.image.image import image_key

log = logging.getLogger("quota")

LOOK_S = 1.0
PAUSE = 100  # times the processor time that a look at the cache took, until the next one
LONGEST_PAUSE_S = 10.0


class Quota:
    """``sources``: where cached blobs lie.  ``disk_full``: set by a write that found no space,
    cleared here."""

    def __init__(
        self,
        store: Store,
        sources: Sequence[EvictionSource],
        disk_full: threading.Event,
        limit: int,
    ) -> None:
        self._images = store.images
        self._disk_full = disk_full
        self._sources = sources
        self._evictor = Evictor(sources, store.root, limit)

    @property
    def limit(self) -> int:
        """Of all cached blobs, bytes; 0: none."""
        return self._evictor.limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._evictor.limit = limit

    def size(self) -> int:
        """Bytes on disk of all that is cached."""
        return self._evictor.size()

    def keep(self, stopped: threading.Event) -> None:
        """Until then; in a thread of its own, since to delete much takes long."""
        pause = LOOK_S
        while not stopped.wait(pause):
            started = time.thread_time()
            try:
                self._look()
            except Exception as e:  # the next look may fare better
                log.error("the cache cannot be kept within its limit: %s", e, exc_info=e)
            pause = min(max(LOOK_S, (time.thread_time() - started) * PAUSE), LONGEST_PAUSE_S)

    def _look(self) -> None:
        wanted = max(source.room_wanted() for source in self._sources)
        if wanted or self._disk_full.is_set():
            self._disk_full.clear()
            self._evictor.make_room(wanted)
        self._evictor.keep_limit()

    def gc(self, target: int, bindings: Iterable[Binding], *, dry_run: bool) -> dict[str, Any]:
        """Evict unused blobs until they take ``target`` bytes, and images that nothing uses."""
        answer = self._evictor.shrink(target, dry_run=dry_run)
        keep = images.KEPT if target else 0
        return {**answer, "images": self.collect_images(bindings, keep, dry_run=dry_run)}

    def drop(self, name: str) -> tuple[list[str], list[str]]:
        """Delete what is cached under this blob id or fsid, in every source: the names (see
        ``Cached``) of those that are gone, and of those that are in use."""
        gone: list[str] = []
        used: list[str] = []
        for source in self._sources:
            found = [b.name for b in source.blobs() if b.name.rpartition("/")[2] == name]
            gone += source.drop(found) if found else []
            used += [n for n in found if n not in gone]
        return gone, used

    def collect_images(
        self, bindings: Iterable[Binding], keep: int = images.KEPT, *, dry_run: bool = False
    ) -> list[str]:
        """Bootstraps, metadata and traces of others than ``bindings``: see ``images.collect``."""
        used = {name for b in bindings for name in (b.digest, image_key(b.digest, b.backend))}
        try:
            return images.collect(self._images, used, keep=keep, dry_run=dry_run)
        except OSError as e:
            log.error("%s is not tidied: %s", self._images, e)
            return []
