"""The life of the service, which the keeper starts: start, threads, end, making way.

Guarantees: one image's trouble never blocks another's; what is mounted survives this process, as
``state.json`` and the descriptors at the keeper; this process ends for good only when the kernel
has nothing left of what it served, and refuses new work before it looks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from pathlib import Path
from typing import Any

import nydus_fscache
from nydus_fscache.daemon.binder import Binder
from nydus_fscache.daemon.calls import Calls
from nydus_fscache.daemon.dispatch import Dispatcher
from nydus_fscache.daemon.engine import Engine
from nydus_fscache.daemon.housekeeping import Housekeeper
from nydus_fscache.daemon.mounts import MountTable
from nydus_fscache.daemon.record import Record
from nydus_fscache.daemon.take_over import TakeOver
from nydus_fscache.errors import DaemonError, MountpointError
from nydus_fscache.handover import upgrade
from nydus_fscache.handover.link import Handover
from nydus_fscache.handover.retry_queue import RetryQueue
from nydus_fscache.handover.upgrade import Successor
from nydus_fscache.kernel.syscalls import raise_nofile_limit, trim
from nydus_fscache.log import event

log = logging.getLogger("service")

RELEASE_PATIENCE_S = 1.0  # for the kernel to let go of what was unmounted just now


class Service(Calls):
    """Thread-safe; an ``api.native.Calls``."""

    def __init__(self, root: Path, handover: Handover) -> None:
        self._handover = handover
        engine = Engine(root, handover)
        waiting, mounts = RetryQueue(), MountTable(engine.transports, root)
        record = Record(engine, mounts, waiting)
        binder = Binder(engine, mounts, record)
        take_over = TakeOver(engine, mounts, binder, record, waiting)
        super().__init__(engine, mounts, binder, record, take_over, waiting)
        mounts.on_change, mounts.on_move = record.save_soon, record.save
        engine.objects.on_found = self._go_on
        self._stopped = threading.Event()
        self._ending = threading.Lock()  # one end is tried at a time
        self._end_asked = threading.Event()
        self.successor: Successor | None = None
        self.ends_in_place = False  # after ``close``: is what has the root's name ours?
        raise_nofile_limit()
        with contextlib.suppress(ProcessLookupError):  # another takes its place, with our limit
            raise_nofile_limit(handover.keeper_pid)
        take_over.begin()
        dispatcher = Dispatcher(engine)
        for name, work in (
            ("dispatch", dispatcher.run),
            ("watch", dispatcher.watch),
            ("housekeeping", Housekeeper(engine, mounts, binder, record, self._end_if_idle).run),
            ("take-over", take_over.serve_waiting),
            ("mounts", mounts.watch),
            ("quota", engine.quota.keep),
        ):
            threading.Thread(target=work, args=(self._stopped,), name=name, daemon=True).start()

    def _end_if_idle(self) -> None:
        self.stop({"if_idle": True})

    def _go_on(self) -> None:
        if self._engine.prefetcher.go_on():
            self._record.save()

    def prepare(self) -> None:
        """What the first mount would wait for long, while nobody does.  Modules are no part of
        it: some milliseconds, and a MiB of an idle node."""
        self._engine.transports.prepare()
        trim()

    # -- the end -----------------------------------------------------------------------------

    def stop(self, request: dict[str, Any]) -> dict[str, Any]:
        """Unmount everything and end; raises ``MountpointError`` when a mount is busy.

        ``if_idle``: only when nothing is mounted, bound or under way.  The answer's ``stopped``:
        does it end?
        """
        with self._ending:
            if self._end_asked.is_set():
                return {"stopped": True}
            if not request.get("if_idle"):
                self._mounts.refuse_work(stopping=True)
            elif self._waiting.all() or not self._mounts.end_if_idle():
                return {"stopped": False}
            try:
                self._mounts.wait_for_work()
                self._unmount_all()
            except BaseException:
                self._mounts.allow_work()
                raise
            self._end_asked.set()
            return {"stopped": True}

    def _unmount_all(self) -> None:
        busy: dict[str, MountpointError] = {}
        for active in self._mounts.all():
            try:
                self._mounts.umount(active)
            except MountpointError as e:
                busy[str(e)] = e
        for waiting in self._waiting.all():
            try:
                self._take_over.give_up(waiting)
            except MountpointError as e:
                busy[str(e)] = e
        self._binder.release_unused()
        if busy:
            hint = "end the programs that use them (fuser -vm), then stop again"
            if len(busy) == 1:
                hint = next(iter(busy.values())).hint or hint
            raise MountpointError("; ".join(busy), hint=hint)
        release = self._binder.release_unused
        held = self._mounts.release_held(RELEASE_PATIENCE_S, release)
        if self._engine.orphans.sweep():
            held.append("an image that is not served any more")
        if held:
            raise MountpointError(
                f"still in use: {', '.join(held)}",
                hint="end what uses them (processes, overlays, bind mounts), then stop again",
            )

    def wait_until_stopped(self) -> None:
        """Returns when the end was asked for, and nothing that the kernel has is in the way."""
        while True:
            self._end_asked.wait()
            if self.successor is not None or self._nothing_is_mounted():
                return
            with self._ending:
                self._end_asked.clear()
                self._mounts.allow_work()

    def _nothing_is_mounted(self) -> bool:
        """Looks once more where a wrong answer would show readers zeros."""
        self._mounts.refresh()
        held = [a for a in self._mounts.all() if a.binding.mountpoint]
        if held or self._engine.orphans.sweep():
            log.error("asked to end, but there are mounts still: %s", [a.name for a in held])
            return False
        return True

    def close(self) -> bool:
        """After ``stop``: give everything back.  False when the kernel has something after all,
        which a successor must hold: then the coming exit is not meant."""
        engine = self._engine
        self._stopped.set()
        engine.fetcher.stop()
        self._binder.unbind(self._mounts.take_all())
        self._binder.wait_for_unbound()
        self._binder.collect_images()
        engine.core.stop()
        self._record.close()
        if engine.orphans.sweep():
            log.error("asked to end, but the kernel still reads files of ours")
            return False
        for transport in engine.transports.in_use().values():
            transport.close()
        engine.objects.close()
        self.ends_in_place = engine.store.is_in_place()
        engine.store.close()
        self._handover.bye()
        return True

    # -- making way --------------------------------------------------------------------------

    def upgrade(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make way for the service of another installation, whose interpreter is ``python``;
        ``dry_run``: only ask it whether it can take over.  The versions and the old pid."""
        self._record.write_whole()  # an older version reads nothing else
        try:
            with self._handover.journal() as journal:
                root = self._engine.store.root
                successor = upgrade.ask(str(request.get("python")), root, journal)
            if not request.get("dry_run"):
                self._agree(successor)
        finally:
            if self.successor is None:
                self._record.write_whole(on=False)
        versions = {"old_version": nydus_fscache.__version__, "new_version": successor.version}
        return {**versions, "pid": os.getpid()}

    def _agree(self, successor: Successor) -> None:
        with self._ending:
            if self._end_asked.is_set():
                raise DaemonError("the service is ending", hint="see nydus-fscache status")
            self._mounts.refuse_work(stopping=False)  # it is the successor's
            try:  # before the answer: the caller may believe it, whatever we die of
                self._handover.upgrade(successor.keeper, successor.service)
            except BaseException:
                self._mounts.allow_work()
                raise
            self.successor = successor
            self._end_asked.set()

    def make_way(self) -> None:
        """After ``upgrade``: leave everything as a successor takes it up; to be followed by exit.

        Requests that wait stay in the journal; what is on its way is fetched again, which takes
        less time than a slow backend.
        """
        assert self.successor is not None
        log.info("making way for version %s", self.successor.version)
        event("making-way", to_version=self.successor.version)
        self._stopped.set()
        self._engine.core.stop()
        self._engine.tracer.collect()
        self._record.save()
