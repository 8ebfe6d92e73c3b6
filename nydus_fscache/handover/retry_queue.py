"""A binding that a successor could not serve yet: when it is tried again, and how long it may wait.

Readers of such an image wait for ``keeper.DENY_AFTER_S`` as they do when no service
runs; after that they get EIO, until a try succeeds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import field
from typing import Any

from nydus_fscache.handover import keeper
from nydus_fscache.image.binding import Address, Binding
from rafs_v6.values import dataclass

log = logging.getLogger("service")

_TICK_S = 0.1
LONGEST_PAUSE_S = 30.0
FIRST_PAUSE_S = 0.25


@dataclass(slots=True)
class PendingRestore:
    """``remount``: its mount was of no use any more, and is to be made anew; ``unmounted``: the old
    one is gone, by us."""

    binding: Binding
    remount: bool
    error: str
    since: float = field(default_factory=time.monotonic)
    next_try: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    unmounted: bool = False

    def due(self) -> bool:
        return time.monotonic() >= self.next_try

    def overdue(self) -> bool:
        return time.monotonic() - self.since > keeper.DENY_AFTER_S

    def failed(self, error: Exception) -> None:
        self.error = str(error)
        self.next_try = time.monotonic() + self.pause_s
        self.pause_s = min(2 * self.pause_s, LONGEST_PAUSE_S)

    def document(self) -> dict[str, Any]:
        binding = self.binding
        return {
            "mountpoint": binding.mountpoint,
            "image": binding.source,
            "transport": binding.transport,
            "error": self.error,
            "for_s": round(time.monotonic() - self.since, 1),
        }


class RetryQueue:
    """All of them.  Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[PendingRestore] = []

    def all(self) -> list[PendingRestore]:
        with self._lock:
            return list(self._waiting)

    def addresses(self, transport: str) -> list[Address]:
        """Of those that are to be served over a transport."""
        return [w.binding.address for w in self.all() if w.binding.transport == transport]

    def add(self, waiting: PendingRestore) -> None:
        with self._lock:
            self._waiting.append(waiting)

    def remove(self, waiting: PendingRestore) -> bool:
        """False: somebody has done so before."""
        with self._lock:
            was_here = waiting in self._waiting
            if was_here:
                self._waiting.remove(waiting)
            return was_here

    def serve(
        self,
        try_again: Callable[[PendingRestore], None],
        fail_pending: Callable[[], None],
        stopped: threading.Event,
    ) -> None:
        """Until all are gone: ``try_again`` those that are due; ``fail_pending`` once, when one is
        overdue."""
        failed = False
        while (waiting := self.all()) and not stopped.is_set():
            for one in waiting:
                if one.due():
                    try_again(one)
            if not failed and any(one.overdue() for one in self.all()):
                log.error("images not served for %.0f s: EIO for readers", keeper.DENY_AFTER_S)
                fail_pending()
                failed = True
            stopped.wait(_TICK_S)
