"""Hands the events that C could not answer alone to whom they concern."""

from __future__ import annotations

import errno
import logging
import threading

from nydus_fscache.core.events import Event, ReadaheadHit, ReadMiss
from nydus_fscache.daemon.engine import Engine

log = logging.getLogger("service")

_LOOK_MS = 1000


class Dispatcher:
    def __init__(self, engine: Engine) -> None:
        self._core = engine.core
        self._objects = engine.objects
        self._transports = engine.transports

    def run(self, stopped: threading.Event) -> None:
        """Until then, in a thread of its own."""
        while not stopped.is_set():
            for event in self._core.next(timeout_ms=_LOOK_MS):
                try:
                    self._handle(event)
                except Exception:  # one bad event must not end the service of the others
                    log.exception("event %s", event)
                    if isinstance(event, ReadMiss):
                        self._core.fail(event.object, event.off, event.len, errno.EIO)

    def _handle(self, event: Event) -> None:
        if isinstance(event, ReadaheadHit):
            if obj := self._objects.get(event.object):
                obj.read_ahead(event.off)
            return
        if isinstance(event, ReadMiss) and self._demand(event):
            return
        if any(transport.handle(event) for transport in self._transports.in_use().values()):
            return
        if not isinstance(event, ReadMiss):
            log.error("event that nobody expects: %s", event)
        elif not self._demand(event):  # an orphan may have been taken just now
            self._core.fail(event.object, event.off, event.len, errno.EIO)

    def _demand(self, event: ReadMiss) -> bool:
        obj = self._objects.get(event.object)
        if obj is not None:
            obj.demand(event.off, event.len, event.pid)
        return obj is not None
