"""Limits of the cache: blobs by size, images by number, room on a disk that was full.

Nothing here is an error of a reader: a limit that cannot be kept is logged.  A look at the cache
costs as much as there is in it, 10^5 blobs some seconds.  So it is taken when blobs have grown by
what there was room for, and else as seldom as it costs a hundredth of a processor.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nydus_fscache.cache.evict import EvictionSource, Evictor
from nydus_fscache.cache.store import Store
from nydus_fscache.image import kept_files as images
from nydus_fscache.image.binding import Binding
from nydus_fscache.image.image import image_key
from rafs_v6.values import dataclass

log = logging.getLogger("quota")

LOOK_S = 1.0
PAUSE = 100  # times the processor time that a look at the cache took, until the next one,
PAUSE_ABOVE = 10  # or where what is in use is above the limit, and may come free
DEAR_S = 0.05  # of processor time, for a look whose answer is used again


@dataclass(slots=True)
class _Look:
    """At all that is cached: bytes, those written before, when, and seconds that it took."""

    total: int
    written: int
    at: float
    took_s: float


class Quota:
    """``sources``: where cached blobs lie.  ``disk_full``: set by a write that found no space,
    cleared here.  ``written``: bytes by which blobs have grown since the start, or more."""

    def __init__(
        self,
        store: Store,
        sources: Sequence[EvictionSource],
        disk_full: threading.Event,
        written: Callable[[], int],
        limit: int,
    ) -> None:
        self._store = store
        self._images = store.images
        self._disk_full = disk_full
        self._sources = sources
        self._written = written
        self._evictor = Evictor(sources, store.root, limit)
        self._last: _Look | None = None

    @property
    def limit(self) -> int:
        """Of all cached blobs, bytes; 0: none."""
        return self._evictor.limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._evictor.limit = limit
        self._last = None

    def size(self) -> int:
        """Bytes on disk of all that is cached; where a look takes long, what the last one found and
        what was written since."""
        last = self._last
        if last is None or last.took_s < DEAR_S or self._is_old(last):
            last = self._look_with(self._evictor.size)
        return last.total + self._written() - last.written

    def _look_with(self, look: Callable[[], int]) -> _Look:
        written, began = self._written(), time.thread_time()
        total = look()
        took = time.thread_time() - began
        self._last = found = _Look(total, written, time.monotonic(), took)
        return found

    def _is_old(self, look: _Look, pause: int = PAUSE) -> bool:
        return time.monotonic() - look.at >= max(LOOK_S, look.took_s * pause)

    def keep(self, stopped: threading.Event) -> None:
        """Until then; in a thread of its own, since to delete much takes long."""
        while not stopped.wait(LOOK_S):
            try:
                self._look()
            except Exception as e:  # the next look may fare better
                log.error("the cache cannot be kept within its limit: %s", e, exc_info=e)

    def _look(self) -> None:
        if not self._store.is_in_place():  # what lies there is not ours
            return
        wanted = max(source.room_wanted() for source in self._sources)
        if wanted or self._disk_full.is_set():
            self._disk_full.clear()
            self._evictor.make_room(wanted)
            self._last = None
        if not self.limit:
            return
        last = self._last
        if last is None:
            is_due = True
        elif last.total > self.limit:
            is_due = self._is_old(last, PAUSE_ABOVE)
        else:
            grown = self._written() - last.written
            is_due = last.total + grown > self.limit or self._is_old(last)
        if is_due:
            self._look_with(self._evictor.keep_limit)

    def gc(self, target: int, bindings: Iterable[Binding], *, dry_run: bool) -> dict[str, Any]:
        """Evict unused blobs until they take ``target`` bytes, and images that nothing uses."""
        answer = self._evictor.shrink(target, dry_run=dry_run)
        self._last = None
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
        self._last = None
        return gone, used

    def collect_images(
        self, bindings: Iterable[Binding], keep: int = images.KEPT, *, dry_run: bool = False
    ) -> list[str]:
        """Bootstraps, metadata and traces of others than ``bindings``: see ``images.collect``."""
        if not self._store.is_in_place():
            return []
        used = {name for b in bindings for name in (b.digest, image_key(b.digest, b.backend))}
        try:
            return images.collect(self._images, used, keep=keep, dry_run=dry_run)
        except OSError as e:
            log.error("%s is not tidied: %s", self._images, e)
            return []
