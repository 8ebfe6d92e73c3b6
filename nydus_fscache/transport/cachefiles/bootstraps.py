"""Bootstraps as objects of the kernel's: each is written whole when it is opened.

The kernel reads metadata page by page, one request each, so nobody waits for what it asks: a
bootstrap is here, and is written as fast as the disk takes it.
"""

from __future__ import annotations

import errno
import logging
import threading

from nydus_fscache.cache.presence import PageMap
from nydus_fscache.core.core import Core
from nydus_fscache.image.image import Image
from rafs_v6.values import dataclass

log = logging.getLogger("cachefiles")

_STEP = 1 << 20


@dataclass(slots=True)
class _Bootstrap:
    """``pages`` must outlive the object in the C core."""

    image: Image
    pages: PageMap
    filling: bool = False


class Bootstraps:
    """By object number, as in the C core.  Thread-safe."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._lock = threading.Lock()
        self._by_oid: dict[int, _Bootstrap] = {}

    def add(self, oid: int, image: Image, pages: PageMap) -> None:
        with self._lock:
            self._by_oid[oid] = _Bootstrap(image, pages)

    def remove(self, oid: int) -> bool:
        with self._lock:
            return self._by_oid.pop(oid, None) is not None

    def size(self, oid: int) -> int:
        """0: it is not a bootstrap."""
        with self._lock:
            bootstrap = self._by_oid.get(oid)
            return bootstrap.image.size if bootstrap else 0

    def fill(self, oid: int) -> bool:
        """Write it, in the background, unless that is under way; what could not be is tried again
        so.  False: it is not a bootstrap."""
        with self._lock:
            bootstrap = self._by_oid.get(oid)
            if bootstrap is not None and not bootstrap.filling:
                bootstrap.filling = True
                threading.Thread(target=self._fill, args=(oid, bootstrap), daemon=True).start()
            return bootstrap is not None

    def _fill(self, oid: int, bootstrap: _Bootstrap) -> None:
        image, error = bootstrap.image, 0
        try:
            with image.path.open("rb") as f:
                for off in range(0, image.size, _STEP):
                    self._core.fill_flat(oid, off, f.read(_STEP))
        except OSError as e:
            log.error("bootstrap of %s: %s", image.digest, e)
            error = errno.EIO
        with self._lock:
            bootstrap.filling = False
        if error:  # after that: a reader that comes later starts another try
            self._core.fail(oid, 0, image.size, error)
