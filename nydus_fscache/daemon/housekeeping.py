"""What is done once a second: deadlines of readers, records that are behind, what comes free."""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable

from nydus_fscache.daemon.binder import Binder
from nydus_fscache.daemon.engine import Engine
from nydus_fscache.daemon.mounts import MountTable
from nydus_fscache.daemon.record import Record
from nydus_fscache.errors import CacheDirError
from nydus_fscache.fetch.completion import Completion
from nydus_fscache.log import event

log = logging.getLogger("service")

REQUEST_DEADLINE_S = 90.0
HOUSEKEEPING_S = 1.0


class Housekeeper:
    def __init__(
        self,
        engine: Engine,
        mounts: MountTable,
        binder: Binder,
        record: Record,
        end_if_idle: Callable[[], object],
    ) -> None:
        self._engine = engine
        self._end_if_idle = end_if_idle
        self._was_in_place = True
        self._mounts = mounts
        self._binder = binder
        self._record = record
        self._completion = Completion(engine.prefetcher)

    def run(self, stopped: threading.Event) -> None:
        """Until then, in a thread of its own."""
        while not stopped.wait(HOUSEKEEPING_S):
            try:
                self._tidy()
            except Exception:  # deadlines must be kept whatever else goes wrong
                log.exception("housekeeping")

    def _tidy(self) -> None:
        engine = self._engine
        expired = engine.core.expire(REQUEST_DEADLINE_S, errno.EIO)
        if expired:
            log.error("%d requests got EIO after %.0f s", expired, REQUEST_DEADLINE_S)
        for obj in engine.objects.all():
            try:
                obj.persist_when_due()
            except (OSError, ValueError) as e:
                log.error("blob %s: presence is not recorded: %s", obj.name, e)
        self._note_independent()
        for transport in engine.transports.in_use().values():
            transport.tidy()
        now = time.monotonic()
        engine.objects.copies.catch_up(now)
        self._completion.look([a for a in self._mounts.all() if a.mounted], now)
        engine.tracer.collect()
        engine.prefetcher.rest()
        self._binder.release_in_background()
        self._binder.collect_images()
        engine.orphans.sweep()
        if self._is_in_place():
            self._record.catch_up()
        else:
            self._end_if_idle()

    def _is_in_place(self) -> bool:
        was, self._was_in_place = self._was_in_place, self._engine.store.is_in_place()
        if was and not self._was_in_place:
            try:
                self._engine.store.check_place()
            except CacheDirError as e:
                log.error("%s: nothing is recorded, no image can be mounted (%s)", e, e.hint)
        return self._was_in_place

    def _note_independent(self) -> None:
        """On record, so that a start after the loss of everything leaves such mounts alone."""
        found = [
            active for active in self._mounts.all()
            if active.mounted and not active.binding.independent
            and self._engine.transports.get(active.binding.transport).is_independent(active.bound)
        ]  # fmt: skip
        for active in found:
            active.binding.independent = True
            log.info("%s is independent: the kernel serves it alone", active.binding.mountpoint)
            event("independent", mountpoint=active.binding.mountpoint, image=active.name)
        if found:
            self._record.save()
