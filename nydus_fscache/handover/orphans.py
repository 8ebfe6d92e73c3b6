"""Cache files that an earlier service served and that no binding has taken up yet.

A mount may read them, so their descriptors are not let go before the kernel has
closed the file: a descriptor opened after the mark could not fill it, and without
the mark a reader would see holes.  While ``held``, their readers wait, because a
binding that failed is to be tried again; otherwise they get EIO at once.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from nydus_fscache.cache.presence import PageMap
from nydus_fscache.core.core import Core
from nydus_fscache.core.park import Park
from nydus_fscache.fetch.orphans import OrphanFile
from nydus_fscache.kernel.leases import is_sole_open

log = logging.getLogger("orphans")


class Orphans:
    """By object number: ``fetch.orphans.OrphanFiles``.  Thread-safe."""

    def __init__(self, core: Core, park: Park) -> None:
        self._core = core
        self._park = park
        self._lock = threading.Lock()
        self._files: dict[int, OrphanFile] = {}
        self.unmark: Callable[[int], object] = os.fstat  # the transport's, once there is one
        for name in [n for n in park.inherited if n.startswith(("fill.", "pages."))]:
            kind, _, number = name.partition(".")
            fd = park.take(name)
            if fd is None or not number.isdigit():
                continue
            file = self._files.setdefault(int(number), OrphanFile(-1, -1))
            if kind == "fill":
                file.fill_fd = fd
            else:
                file.pages_fd = fd
        for oid in [o for o, f in self._files.items() if f.fill_fd < 0]:
            self._let_go(oid)

    def __contains__(self, oid: int) -> bool:
        return oid in self._files

    def highest(self) -> int:
        return max(self._files, default=0)

    def find(self, is_it: Callable[[int], bool]) -> int:
        """The number of the file whose descriptor satisfies ``is_it``; 0: none."""
        with self._lock:
            return next((o for o, f in self._files.items() if is_it(f.fill_fd)), 0)

    def look_at(self, oid: int) -> OrphanFile | None:
        return self._files.get(oid)

    def taken(self, oid: int) -> list[tuple[int, int]]:
        """Another owns the descriptors from now on; returns what readers have missed since."""
        with self._lock:
            file = self._files.pop(oid, None)
            return file.misses if file else []

    def put_back(self, oid: int, fill_fd: int, pages_fd: int) -> None:
        """Nobody serves the file any more, but the kernel has it open."""
        with self._lock:
            self._files[oid] = OrphanFile(fill_fd, pages_fd)

    def missed(self, oid: int, off: int, length: int) -> bool:
        """To be asked for once the file is taken; False when it is not here."""
        with self._lock:
            file = self._files.get(oid)
            if file is not None:
                file.misses.append((off, length))
            return file is not None

    def hold(self) -> None:
        """From now on, readers of these files wait."""
        with self._lock:
            for oid, file in self._files.items():
                if file.pages is None and file.pages_fd >= 0:
                    status = os.fstat(file.fill_fd)
                    file.pages = PageMap(status.st_size, file.pages_fd)
                    self._core.add_object(
                        oid, status.st_dev, status.st_ino, file.fill_fd, status.st_size,
                        file.pages.memory,
                    )  # fmt: skip

    def fail_pending(self) -> None:
        """From now on they get EIO, and those that wait too."""
        with self._lock:
            for oid, file in self._files.items():
                self._stop_holding(oid, file)

    def stop_holding(self, oid: int) -> None:
        with self._lock:
            if file := self._files.get(oid):
                self._stop_holding(oid, file)

    def _stop_holding(self, oid: int, file: OrphanFile) -> None:
        if file.pages is not None:
            self._core.remove_object(oid)
            file.pages.close()
            file.pages = None
        file.misses.clear()

    def sweep(self) -> int:
        """Let go of what the kernel has closed; returns how many files it still reads."""
        with self._lock:
            for oid, file in list(self._files.items()):
                if is_sole_open(file.fill_fd):
                    self._stop_holding(oid, file)
                    self.unmark(file.fill_fd)
                    self._let_go(oid)
                    log.info("cache file %d, which nobody reads any more, is let go", oid)
            return len(self._files)

    def _let_go(self, oid: int) -> None:
        file = self._files.pop(oid)
        for kind, fd in (("fill", file.fill_fd), ("pages", file.pages_fd)):
            if fd >= 0:
                self._park.drop(f"{kind}.{oid}")
                os.close(fd)
