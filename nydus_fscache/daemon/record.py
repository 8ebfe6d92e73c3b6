"""Keeps ``state.json`` up to date: the bindings that a successor is to serve.

Guarantees: nothing is served that is not on record before its mount.  After a change that cannot
be undone the record may lag, when the disk is full: it is written again later, and until then a
successor sees by itself what is not mounted any more.
"""

from __future__ import annotations

import logging

from nydus_fscache.daemon.engine import Engine
from nydus_fscache.daemon.mounts import MountTable
from nydus_fscache.errors import CacheDirError
from nydus_fscache.handover.retry_queue import RetryQueue
from nydus_fscache.image.binding import Binding

log = logging.getLogger("service")


class Record:
    """Thread-safe."""

    def __init__(self, engine: Engine, mounts: MountTable, waiting: RetryQueue) -> None:
        self._engine = engine
        self._mounts = mounts
        self._waiting = waiting
        self.behind = False

    def bindings(self) -> list[Binding]:
        with self._mounts.lock:
            active = [a.binding for a in self._mounts.all()]
            return active + [w.binding for w in self._waiting.all()]

    def save(self) -> None:
        try:
            self.write()
        except CacheDirError as e:
            log.error("%s", e)

    def save_soon(self) -> None:
        """By the next ``catch_up``."""
        self.behind = True

    def catch_up(self) -> None:
        if self.behind:
            self.save()

    def write(self) -> None:
        """Raises ``CacheDirError``."""
        engine = self._engine
        with self._mounts.lock:
            engine.state.bindings = self.bindings()
            engine.state.numbers = engine.objects.numbers()
            engine.state.cache_limit = engine.quota.limit
            self.behind = True
            try:
                engine.state.save(engine.state_path)
            except OSError as e:
                raise CacheDirError(
                    f"cannot write {engine.state_path}: {e.strerror}",
                    hint="free some space, or choose another --root",
                ) from e
            self.behind = False
