"""Serves again what an earlier service had mounted, at once where possible, else as soon as it is.

Guarantees: one image that cannot be served again, whatever the reason, stops no other and not the
start; no backend is waited for before the others are served.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from operator import itemgetter
from pathlib import Path

from nydus_fscache.daemon.active_mount import ActiveMount, Phase
from nydus_fscache.daemon.binder import Binder
from nydus_fscache.daemon.engine import Engine
from nydus_fscache.daemon.mounts import MountTable, is_replaced, note_replacement
from nydus_fscache.daemon.record import Record
from nydus_fscache.errors import DaemonEnding, MountpointError
from nydus_fscache.handover.retry_queue import PendingRestore, RetryQueue
from nydus_fscache.image.binding import Address, Binding
from nydus_fscache.kernel import mountinfo
from nydus_fscache.kernel.mountinfo import MountId
from nydus_fscache.log import event

log = logging.getLogger("service")


class TakeOver:
    """Thread-safe."""

    def __init__(
        self,
        engine: Engine,
        mounts: MountTable,
        binder: Binder,
        record: Record,
        waiting: RetryQueue,
    ) -> None:
        self._engine = engine
        self._mounts = mounts
        self._binder = binder
        self._record = record
        self._waiting = waiting

    def begin(self) -> None:
        """Bind what the state names and the kernel still has; settle what is open; start."""
        engine, bindings = self._engine, self._engine.state.bindings
        known = engine.state_path.exists()
        table = mountinfo.Table()  # for all of them
        useless = self._find_useless(bindings, table)
        for binding, is_useless in zip(bindings, useless, strict=True):
            waiting = PendingRestore(binding, is_useless, "not tried yet")
            try:
                active = self._serve_again(waiting, bindings, table, may_ask=False)
            except Exception as e:  # whatever it is, the other images must be served
                self._log(waiting, e)
                waiting.error = str(e)
                self._waiting.add(waiting)
            else:
                if active is not None:
                    self._mounts.add(active)
            engine.handover.progress()
        engine.transports.take_up()
        for name, transport in engine.transports.in_use().items():
            if awaited := self._waiting.addresses(name):
                transport.hold(awaited)
            transport.resume()
        # without a state nothing is held, and what cannot be told apart may be of any mount
        settled = engine.core.settle(all_served=known)
        engine.core.start()
        taken = self._mounts.all()
        engine.prefetcher.resume(taken)
        if taken:
            log.info("took over %d images, %d requests", len(taken), settled)
            event("taken-over", images=len(taken), requests=settled)
        self._record.save()

    def _find_useless(self, bindings: list[Binding], table: mountinfo.Table) -> list[bool]:
        """Which mounts are to be replaced.  That is on record before anything is done: a successor
        could not tell any more, for it inherits what we open, or finds no mount at all.

        Mounts of the others have their names first: one that a killed service never made, and that
        was made by a further call, is on record twice."""
        engine = self._engine
        useless = [
            not b.independent and (engine.transports.is_useless(b) or self._mounts.must_go(b))
            for b in bindings
        ]
        noted = False
        for is_useless, binding in sorted(zip(useless, bindings, strict=True), key=itemgetter(0)):
            if self._mounts.adopt(binding, bindings, table) is not None and is_useless:
                note_replacement(binding)
                noted = True
        if noted:
            try:
                self._record.write_state()
            except OSError as e:  # then this service must not be killed
                log.error("cannot write %s: %s", engine.state_path, e.strerror)
        return useless

    def _serve_again(
        self,
        waiting: PendingRestore,
        bindings: Iterable[Binding],
        table: mountinfo.Table | None = None,
        *,
        may_ask: bool,
    ) -> ActiveMount | None:
        """None when nobody can read it any more.  Without ``may_ask`` no backend is waited for,
        or one that hangs would hold up all."""
        binding = waiting.binding
        was_replaced = is_replaced(binding)
        mount = None if waiting.unmounted else self._mounts.adopt(binding, bindings, table)
        if mount is not None and waiting.remount:
            note_replacement(binding)
            self._engine.transports.get(binding.transport).check_can_mount()
            self._unmount_useless(binding, mount)
            waiting.unmounted, mount = True, None
        elif mount is None and was_replaced:
            waiting.unmounted = True
        # an image that the user mounts counts always: we are not told of its umount
        if mount is None and binding.mountpoint and not waiting.unmounted:
            holds = self._engine.transports.holds(binding)
            if not holds:
                log.info("%s is not mounted any more", binding.mountpoint)
                return None
        active = self._binder.bind(binding, may_ask=may_ask)
        active.mount = mount
        if waiting.unmounted:
            try:
                self._mounts.mount(active)
            except BaseException:
                self._binder.unbind([active])
                raise
        elif binding.mountpoint:
            active.phase = Phase.MOUNTED if mount is not None else Phase.SUPERBLOCK
        return active

    def _unmount_useless(self, binding: Binding, mount: MountId) -> None:
        """Service and keeper were lost together (``Dialect.is_useless``): a new mount takes the
        place of this one."""
        point = binding.mountpoint
        log.error(
            "%s: keeper and service were lost together; reads since then may have shown zeros; "
            "mounting it again", point,
        )  # fmt: skip
        try:
            self._mounts.umount_name(mount)
        except MountpointError:
            self._mounts.umount_name(mount, lazy=True)
            log.error("%s was in use: restart the programs that have files of it open", point)

    # -- those that could not be served at once ----------------------------------------------

    def serve_waiting(self, stopped: threading.Event) -> None:
        """Until all are served, or are not mounted any more; in a thread of its own."""
        self._waiting.serve(self._try_again, self._fail_pending, stopped)
        self._fail_pending()

    def _fail_pending(self) -> None:
        for transport in self._engine.transports.in_use().values():
            transport.fail_pending()

    def _try_again(self, waiting: PendingRestore) -> None:
        try:
            with self._mounts.work():
                self._serve_waiting(waiting)
        except DaemonEnding:
            return
        except Exception as e:  # the others must be tried too
            waiting.failed(e)
            self._log(waiting, e)

    def _serve_waiting(self, waiting: PendingRestore) -> None:
        active = self._serve_again(waiting, self._record.bindings(), may_ask=True)
        with self._mounts.lock:
            was_given_up = not self._waiting.remove(waiting)
            if active is not None:
                self._mounts.add(active)
                self._record.update(active)
            else:
                self._record.forget([waiting.binding])
        if active is None:
            return
        if was_given_up:
            self._binder.leave(active)
        else:
            log.info("%s is served again", active.name)
            event("served-again", mountpoint=active.binding.mountpoint, image=active.name)
            self._engine.prefetcher.resume([active])

    def _log(self, waiting: PendingRestore, error: Exception) -> None:
        pause = max(0.0, waiting.next_try - time.monotonic())
        log.error(
            "%s cannot be served again: %s; next try in %.1f s",
            waiting.binding.source, error, pause,
        )  # fmt: skip

    # -- given up ----------------------------------------------------------------------------

    def waiting_at(self, mountpoint: str) -> PendingRestore | None:
        found = (w for w in self._waiting.all() if w.binding.mountpoint)
        real = Path(mountpoint).resolve()
        return next((w for w in found if w.binding.mountpoint in (str(real), mountpoint)), None)

    def give_up(self, waiting: PendingRestore) -> None:
        """Unmount what is not served; raises ``MountpointError`` when it is busy."""
        if (mount := self._mounts.adopt(waiting.binding, self._record.bindings())) is not None:
            self._mounts.umount_name(mount)
        with self._mounts.lock:
            if self._waiting.remove(waiting):
                self._record.forget([waiting.binding])

    def forget(self, address: Address) -> bool:
        """Of what the user mounts: it is unbound, or bound anew."""
        with self._mounts.lock:
            for waiting in self._waiting.all():
                b = waiting.binding
                if not b.mountpoint and b.address == address:
                    self._waiting.remove(waiting)
                    self._record.forget([b])
                    return True
        return False
