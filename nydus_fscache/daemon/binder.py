"""Binds images to transports, and lets them go: what comes before a mount and after its end."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from nydus_fscache.config.tuning import tuning_of
from nydus_fscache.daemon.active_mount import ActiveMount, Phase
from nydus_fscache.daemon.engine import Engine
from nydus_fscache.daemon.mounts import MountTable
from nydus_fscache.daemon.record import Record
from nydus_fscache.image.binding import Binding

UNBIND_PATIENCE_S = 60.0


class Binder:
    """Thread-safe; works without the table's lock, since a backend that is stuck can make it
    long."""

    def __init__(self, engine: Engine, mounts: MountTable, record: Record) -> None:
        self._engine = engine
        self._mounts = mounts
        self._record = record
        self._unbinding = 0
        self._may_collect = False
        self._unbound = threading.Condition()

    def bind(self, binding: Binding, *, may_ask: bool = True) -> ActiveMount:
        """Not in the table yet.  ``may_ask``: the backend, for what is not cached."""
        engine = self._engine
        image = engine.images.take(binding, may_ask=may_ask)
        try:
            engine.fetcher.tune(image.backend, tuning_of(binding.tuning, "tuning"))
            bound = engine.transports.get(binding.transport).bind(image, binding.address)
        except BaseException:
            engine.images.give_up(image)
            raise
        engine.tracer.watch(binding.digest, bound.objects)
        phase = Phase.MOUNTING if binding.mountpoint else Phase.USERS
        return ActiveMount(binding, image, bound, phase)

    def enter(self, active: ActiveMount) -> None:
        """Before it is mounted: nothing is served that a successor would not know."""
        try:
            with self._mounts.lock:
                self._mounts.add(active)
                self._record.enter(active)
        except BaseException:
            self.leave(active)
            raise

    def leave(self, active: ActiveMount) -> None:
        """It is not to be served after all.  A mount that is there is unmounted first, since
        nobody would fill what it reads."""
        self._mounts.umount(active, lazy=True)
        self._mounts.remove(active)
        self.unbind([active])

    def unbind(self, gone: Sequence[ActiveMount]) -> None:
        """Of those that are in the table no more."""
        engine = self._engine
        with self._unbound:
            self._unbinding += 1
        try:
            for active in gone:
                with self._mounts.lock:
                    if not any(a.digest == active.digest for a in self._mounts.all()):
                        engine.tracer.unwatch(active.digest)
                        engine.prefetcher.forget(active)
                engine.images.give_up(active.image)
                engine.transports.get(active.binding.transport).unbind(active.bound)
        finally:
            with self._unbound:
                self._unbinding -= 1
                self._unbound.notify_all()
            self._record.forget(a.binding for a in gone)
            self._may_collect = True

    def collect_images(self) -> None:
        """After ``unbind``: what is kept of images in bounds.  It looks at all of them, so once
        after many."""
        if self._may_collect:
            self._may_collect = False
            self._engine.quota.collect_images(self._record.bindings())

    def wait_for_unbound(self) -> None:
        """Until no ``unbind`` is under way, or for ``UNBIND_PATIENCE_S``."""
        with self._unbound:
            self._unbound.wait_for(lambda: not self._unbinding, UNBIND_PATIENCE_S)

    def release_unused(self) -> None:
        """Unbind what was unmounted, once the kernel has let go of it."""
        if gone := self._mounts.take_unused():
            self.unbind(gone)

    def release_in_background(self) -> None:
        if gone := self._mounts.take_unused():
            threading.Thread(target=self.unbind, args=(gone,), daemon=True).start()
