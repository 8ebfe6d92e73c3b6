"""Hands the events that C could not answer alone to whom they concern.

Readers wait for the one thread that does it.  It can be lost to a lack of memory (CPython's
``Thread.start`` never returns when the new thread finds none): then the process ends, for the
keeper to start another, which costs readers a pause instead of an error each.
"""

from __future__ import annotations

import errno
import logging
import os
import threading

from nydus_fscache.core.events import Event, ReadaheadHit, ReadMiss
from nydus_fscache.daemon.engine import Engine

log = logging.getLogger("service")

_LOOK_MS = 1000
WATCH_S = 5.0
STUCK_LOOKS = 5  # at one event; looks, since time passes while the process is stopped.  Before the
# keeper fails what is 30 s old
EXIT_STUCK = 70


class Dispatcher:
    def __init__(self, engine: Engine) -> None:
        self._core = engine.core
        self._objects = engine.objects
        self._transports = engine.transports
        self._begun = self._done = 0  # events

    def run(self, stopped: threading.Event) -> None:
        """Until then, in a thread of its own."""
        try:
            while not stopped.is_set():
                for event in self._core.next(timeout_ms=_LOOK_MS):
                    self._begun += 1
                    self._try(event)
                    self._done = self._begun
        finally:
            if not stopped.is_set():
                _end("no events are handled any more")

    def _try(self, event: Event) -> None:
        try:
            self._handle(event)
        except Exception:  # one bad event must not end the service of the others
            log.exception("event %s", event)
            if isinstance(event, ReadMiss):
                self._core.fail(event.object, event.off, event.len, errno.EIO)

    def watch(self, stopped: threading.Event) -> None:
        """Until then, in a thread of its own, which takes no lock."""
        looks, seen = 0, 0
        while not stopped.wait(WATCH_S):
            begun, is_busy = self._begun, self._done != self._begun
            looks = looks + 1 if is_busy and begun == seen else 0
            seen = begun
            if looks >= STUCK_LOOKS:
                _end("stuck at an event")

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


def _end(why: str) -> None:
    os.write(2, f"the service ends, for another to go on: {why}\n".encode())
    os._exit(EXIT_STUCK)
