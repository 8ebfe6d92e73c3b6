"""Keeps ``state.json`` up to date: the bindings that a successor is to serve.

Guarantees: nothing is served that is not on record before its mount.  Room for a record is set
aside, so that a full disk does not hold up what cannot be undone: a mount that somebody moved is
found by its name, or not at all.  Where the disk has no room even so, the record lags: it is
written again later, and until then a successor sees by itself what is not mounted any more.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os

from nydus_fscache.daemon.engine import Engine
from nydus_fscache.daemon.mounts import MountTable
from nydus_fscache.errors import CacheDirError
from nydus_fscache.handover.retry_queue import RetryQueue
from nydus_fscache.image.binding import Binding

log = logging.getLogger("service")

RESERVE = 1 << 20  # bytes: the record of some two thousand mounts


class Record:
    """Thread-safe."""

    def __init__(self, engine: Engine, mounts: MountTable, waiting: RetryQueue) -> None:
        self._engine = engine
        self._mounts = mounts
        self._waiting = waiting
        self.behind = False
        self._reserve = engine.state_path.with_name("state.reserve")
        self._has_reserve = self._ended = False

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
        with self._mounts.lock, contextlib.suppress(OSError):
            if not (self._has_reserve or self._ended):
                self._set_aside()

    def close(self) -> None:
        """``save`` for the last time."""
        self.save()
        with self._mounts.lock, contextlib.suppress(OSError):
            self._ended = True
            self._reserve.unlink(missing_ok=True)

    def _set_aside(self) -> None:
        fd = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, RESERVE)
            self._has_reserve = True
        except OSError:
            self._reserve.unlink()
            raise
        finally:
            os.close(fd)

    def write_state(self) -> None:
        """The engine's state as it stands; raises ``OSError``."""
        engine = self._engine
        try:
            engine.state.save(engine.state_path)
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._has_reserve = False
            self._reserve.unlink(missing_ok=True)
            engine.state.save(engine.state_path)

    def write(self) -> None:
        """Raises ``CacheDirError``."""
        engine = self._engine
        with self._mounts.lock:
            engine.state.bindings = self.bindings()
            engine.state.numbers = engine.objects.numbers()
            engine.state.cache_limit = engine.quota.limit
            self.behind = True
            try:
                self.write_state()
            except OSError as e:
                raise CacheDirError(
                    f"cannot write {engine.state_path}: {e.strerror}",
                    hint="free some space, or choose another --root",
                ) from e
            self.behind = False
