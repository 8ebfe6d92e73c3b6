"""The calls of the API: each checks its request, does its work, and answers with a document."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import nydus_fscache
from nydus_fscache.api.bodies import (
    digest_of,
    image_of,
    mountpoint_of,
    open_bootstrap,
    paths_in,
    paths_of,
    policy_of,
    size_of,
)
from nydus_fscache.api.metrics import MountSample, Snapshot, metrics_text
from nydus_fscache.api.server import Text
from nydus_fscache.api.status import MountStatus, status_document
from nydus_fscache.daemon.active_mount import ActiveMount, Phase
from nydus_fscache.daemon.binder import Binder
from nydus_fscache.daemon.engine import Engine
from nydus_fscache.daemon.mounts import MountTable
from nydus_fscache.daemon.record import Record
from nydus_fscache.daemon.take_over import TakeOver
from nydus_fscache.errors import DaemonError, MountpointError, UsageError
from nydus_fscache.handover import keeper
from nydus_fscache.handover.retry_queue import RetryQueue
from nydus_fscache.image.binding import Binding
from nydus_fscache.image.image import renew_auth
from nydus_fscache.kernel.namespace import mount_namespace
from nydus_fscache.log import event

log = logging.getLogger("service")

Document = dict[str, Any]


class Calls:
    """Thread-safe."""

    def __init__(
        self,
        engine: Engine,
        mounts: MountTable,
        binder: Binder,
        record: Record,
        take_over: TakeOver,
        waiting: RetryQueue,
    ) -> None:
        self._started_at, self._started_time = time.monotonic(), time.time()
        self._engine = engine
        self._mounts = mounts
        self._binder = binder
        self._record = record
        self._take_over = take_over
        self._waiting = waiting
        self._promising = threading.Lock()
        self._promised: list[Binding] = []  # with an address, not yet in the table

    # -- mounts ------------------------------------------------------------------------------

    def mount(self, request: Document) -> Document:
        """``bootstrap`` (path), ``backend`` (config object), ``mountpoint``, ``transport``,
        ``source`` (what to show).  Returns when the mount can be read."""
        with self._mounts.work():
            self._check_namespace(request)
            self._engine.store.check_place()
            read = [p for a in self._mounts.all() for p in a.paths]
            read += [p for w in self._waiting.all() for p in paths_in(w.binding.backend)]
            read += paths_in(request.get("backend") or {})
            point = mountpoint_of(request, self._engine.store, read)
            policy = policy_of(request, "auto")
            limit = request.get("cache_limit")
            if limit is not None:
                limit = size_of(limit, "cache_limit")
            with self._mounts.claim(point):
                binding = self._binding(request, mountpoint=str(point))
                if policy == "auto":
                    policy = binding.tuning.get("prefetch") or policy
                self._mount(binding, policy)
            # what failed changes nothing
            if limit is not None and limit != self._engine.quota.limit:
                self._engine.quota.limit = limit
                self._record.save()
        return {"mountpoint": str(point), "transport": binding.transport}

    def _check_namespace(self, request: Document) -> None:
        """``mount_namespace``: where the caller would look for the mount."""
        ours, theirs = mount_namespace(), request.get("mount_namespace")
        if theirs and theirs != ours:
            raise MountpointError(
                f"the daemon (process {os.getpid()}) is in another mount namespace, {ours}",
                hint=f"nsenter -t {os.getpid()} -m nydus-fscache mount ..., or stop it and mount",
            )

    def _mount(self, binding: Binding, policy: str) -> None:
        engine = self._engine
        with self._new_address(binding):
            active = self._binder.bind(binding)
            # over cachefiles there is nothing to fill until the kernel has opened it
            is_open = active.is_open
            if is_open:  # the first data are on their way while the rest is done
                try:
                    engine.prefetcher.begin(active, policy, [])
                except BaseException:
                    self._binder.unbind([active])
                    raise
            self._binder.enter(active)
        try:
            if not engine.core.started:
                raise DaemonError("the event core does not run", hint="see the log")
            self._mounts.check_going_on()
            self._mounts.mount(active)
            if not is_open:
                engine.prefetcher.begin_when_open(active, policy)
        except BaseException:
            self._binder.leave(active)
            raise
        if is_open:
            self._record.update_soon(active)  # its name; until then it is found by its place
        else:
            self._record.update(active)  # a successor must know that there is something to load
        log.info("mounted %s at %s over %s", active.name, binding.mountpoint, binding.transport)
        point, transport_name = binding.mountpoint, binding.transport
        event("mounted", mountpoint=point, image=active.name, transport=transport_name)

    def umount(self, mountpoint: str) -> Document:
        active = self._mounts.mounted_at(mountpoint)
        if active is None:
            waiting = self._take_over.waiting_at(mountpoint)
            if waiting is None:
                raise self._not_ours(mountpoint)
            self._take_over.give_up(waiting)
            return {"mountpoint": mountpoint}
        self._mounts.umount(active)
        self._binder.release_unused()
        self._record.save_soon()
        log.info("unmounted %s", mountpoint)
        event("unmounted", mountpoint=mountpoint, image=active.name, by="us")
        return {"mountpoint": mountpoint}

    def bind(self, request: Document) -> Document:
        """Serve an image that the user mounts: ``bootstrap``, ``backend``, ``fsid``, ``domain``."""
        with self._mounts.work():
            self._engine.store.check_place()
            binding = self._binding(request, mountpoint="")
            transport = self._engine.transports.get(binding.transport)
            binding.address = transport.user_address(request)
            if not self._mounts.take_back(binding):
                self._binder.enter(self._binder.bind(binding))
            self._take_over.forget(binding.address)
        event("bound", image=binding.source, **binding.address)
        return dict(binding.address)

    def unbind(self, fsid: str, domain: str, *, lazy: bool = False) -> Document:
        """``lazy``: an image that is mounted is served until the kernel lets go of it."""
        address = {"fsid": fsid, "domain": domain}
        with self._mounts.lock:
            for active in self._mounts.all():
                if active.phase is Phase.USERS and active.binding.address == address:
                    if self._mounts.in_use(active):
                        if lazy:
                            active.phase = Phase.SUPERBLOCK
                            return {**address}
                        raise MountpointError(f"{fsid} is mounted", hint="unmount it first")
                    self._mounts.remove(active)
                    break
            else:
                if self._take_over.forget(address):
                    return {**address}
                raise UsageError(f"{fsid} is not bound", hint="see nydus-fscache status")
        self._binder.unbind([active])
        event("unbound", image=active.name, **address)
        return {**address}

    def _binding(self, request: Document, mountpoint: str) -> Binding:
        wanted = image_of(request, self._engine.store, self._mounts.devices())
        transport = self._engine.transports.choose(str(request.get("transport") or "auto"))
        with open_bootstrap(wanted.bootstrap) as (size, pieces):
            digest = self._engine.store.bootstraps.keep(size, pieces)
        return Binding(
            digest=digest,
            backend=wanted.backend,
            transport=transport,
            address={},
            mountpoint=mountpoint,
            source=wanted.source,
            tuning=wanted.tuning,
        )

    @contextlib.contextmanager
    def _new_address(self, binding: Binding) -> Iterator[None]:
        """One that no other mount is given before this block has ended, with it in the table."""
        transport = self._engine.transports.get(binding.transport)
        with self._promising:
            given = [*self._record.bindings(), *self._promised]
            taken = [b.address for b in given if b.transport == binding.transport]
            binding.address = transport.new_address(binding.digest, taken)
            self._promised.append(binding)
        try:
            yield
        finally:
            with self._promising:
                self._promised = [b for b in self._promised if b is not binding]

    def _not_ours(self, mountpoint: object) -> MountpointError:
        return MountpointError(
            f"nothing of ours is mounted at {mountpoint}", hint="see nydus-fscache status"
        )

    # -- data --------------------------------------------------------------------------------

    def prefetch(self, request: Document) -> Document:
        """``mountpoint``; ``paths`` (list) or ``prefetch`` (policy): returns the run's number."""
        mountpoint = request.get("mountpoint")
        policy, paths = policy_of(request, "all"), paths_of(request)
        with self._mounts.work():
            active = self._mounts.mounted_at(mountpoint) if isinstance(mountpoint, str) else None
            if active is None:
                raise self._not_ours(mountpoint)
            number = self._engine.prefetcher.begin(active, policy, paths)
            self._record.update(active)
        return {"id": number}

    def prefetches(self) -> Document:
        return {"prefetches": self._engine.prefetcher.progress()}

    def gc(self, request: Document) -> Document:
        """Evict unused blobs until the cache takes ``to`` bytes; ``dry_run``: only say which."""
        target, dry_run = size_of(request.get("to") or 0, "to"), bool(request.get("dry_run"))
        with self._mounts.work():
            self._mounts.refresh()
            self._binder.release_unused()
            return self._engine.quota.gc(target, self._record.bindings(), dry_run=dry_run)

    def drop(self, name: str) -> Document:
        """Delete the cached blob of this id, or bootstrap of this fsid, wherever it is cached.

        Raises ``UsageError`` when it is in use; one that is not cached is dropped already.
        """
        with self._mounts.work():
            self._mounts.refresh()
            self._binder.release_unused()
            dropped, used = self._engine.quota.drop(name)
        if used:
            raise UsageError(f"{name} is in use", hint="unmount the images that need it first")
        return {"dropped": dropped}

    def trace(self, digest: str) -> Document:
        """The access trace of the image whose bootstrap has this sha256."""
        return self._engine.tracer.document(digest_of(digest))

    def login(self, request: Document) -> Document:
        """``auth`` (base64 of user:password) for all images from the registry ``host``."""
        host, auth = request.get("host"), request.get("auth")
        if not isinstance(host, str) or not isinstance(auth, str) or not host or not auth:
            raise UsageError("a request needs host and auth", hint="auth: base64 of user:password")
        from nydus_fscache.registry.auth import check_auth  # noqa: PLC0415 - with HTTP, 0.5 MiB

        check_auth(auth)
        with self._mounts.lock:
            found = [b for b in self._record.bindings() if renew_auth(b.backend, host, auth)]
            for active in self._mounts.all():
                if any(active.binding is b for b in found):
                    active.image.backend.reauth(auth)
        if not found:
            raise UsageError(f"no image is mounted from {host}", hint="see nydus-fscache status")
        self._record.save()
        log.info("new credentials for %d images of %s", len(found), host)
        return {"host": host, "images": len(found)}

    def transport(self) -> Document:
        """That of "auto"; raises what a mount would raise where nothing works."""
        return {"transport": self._engine.transports.choose("auto")}

    def status(self) -> Document:
        self._mounts.refresh()
        engine = self._engine
        return {
            "version": nydus_fscache.__version__,
            "root": str(engine.store.root),
            "pid": os.getpid(),
            "keeper_pid": engine.handover.keeper_pid,
            "upgrade_error": os.environ.get(keeper.UPGRADE_ERROR, ""),
            "waiting": [w.document() for w in self._waiting.all()],
            **status_document(
                map(_status_of, self._mounts.all()), engine.objects, engine.core, self._started_at
            ),
        }

    def metrics(self) -> Text:
        self._mounts.refresh()
        engine = self._engine
        return metrics_text(
            Snapshot(
                version=nydus_fscache.__version__,
                starts=keeper.starts(),
                started_at=self._started_time,
                stats=engine.core.stats(),
                mounts=[_sample_of(active) for active in self._mounts.all()],
                waiting=len(self._waiting.all()),
                totals=engine.objects.totals(),
                cached_bytes=engine.quota.size(),
                cache_limit=engine.quota.limit,
                prefetch_left=sum(
                    run["bytes"] - run["done"] for run in engine.prefetcher.progress()
                ),
                upgrade_failed=bool(os.environ.get(keeper.UPGRADE_ERROR)),
            )
        )


def _sample_of(active: ActiveMount) -> MountSample:
    return MountSample(
        mountpoint=active.binding.mountpoint,
        image=active.binding.source,
        transport=active.binding.transport,
        backend=active.image.backend.name,
        state=active.phase.value,
        size=sum(obj.chunks.flat_size for obj in active.objects),
        present=sum(obj.bytes_present() for obj in active.objects),
    )


def _status_of(active: ActiveMount) -> MountStatus:
    binding = active.binding
    return MountStatus(
        mountpoint=binding.mountpoint,
        image=binding.source,
        bootstrap_digest=f"sha256:{binding.digest}",
        transport=binding.transport,
        fsid=binding.address.get("fsid", ""),
        domain=binding.address.get("domain", ""),
        mounted=active.mounted,
        state=active.phase.value,
        device=active.mount.device if active.mount is not None else "",
        independent=active.binding.independent,
        backend=active.image.backend.name,
        blobs=[blob.info.blob_id for blob in active.image.blobs],
    )
