"""The daemon: owns the C core, the transports and what is bound; started by the keeper.

Guarantees: the API call that mounts returns when the mount is ready to read;
one image's trouble never blocks another's (each bind works outside the lock);
every kernel request ends by ``REQUEST_DEADLINE_S``; what is mounted survives
this process, as ``state.json`` and the descriptors at the keeper.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import nydus_fscache
from nydus_fscache.api.bodies import (
    digest_of,
    image_of,
    mountpoint_of,
    paths_of,
    policy_of,
    size_of,
)
from nydus_fscache.api.status import MountStatus, status_document
from nydus_fscache.backend.base import Backend
from nydus_fscache.backend.make import preload
from nydus_fscache.cache.evict import OwnFiles
from nydus_fscache.cache.quota import Quota
from nydus_fscache.cache.store import Store
from nydus_fscache.config.tuning import tuning_of
from nydus_fscache.core.core import Core
from nydus_fscache.core.events import Event, ReadaheadHit, ReadMiss
from nydus_fscache.core.journal import journal_memory
from nydus_fscache.daemon.active_mount import ActiveMount
from nydus_fscache.errors import (
    CacheDirError,
    DaemonError,
    FscacheError,
    MountpointError,
    UsageError,
)
from nydus_fscache.fetch.objects import Objects
from nydus_fscache.fetch.prefetch import Prefetcher
from nydus_fscache.fetch.queue import Fetcher
from nydus_fscache.fetch.trace import Tracer
from nydus_fscache.handover import keeper, previous, state, upgrade
from nydus_fscache.handover.link import Handover
from nydus_fscache.handover.orphans import Orphans
from nydus_fscache.handover.retry_queue import PendingRestore, RetryQueue
from nydus_fscache.image.binding import Address, Binding
from nydus_fscache.image.image import renew_auth
from nydus_fscache.image.open_images import OpenImages
from nydus_fscache.kernel.mount import umount
from nydus_fscache.kernel.syscalls import raise_nofile_limit
from nydus_fscache.registry.auth import check_auth
from nydus_fscache.transport.registry import Transports

log = logging.getLogger("service")

REQUEST_DEADLINE_S = 90.0
HOUSEKEEPING_S = 1.0
UNBIND_PATIENCE_S = 60.0
RELEASE_PATIENCE_S = 1.0  # for the kernel to let go of what was unmounted just now


class Service:
    """Thread-safe; every public method is an API call."""

    def __init__(self, root: Path, handover: Handover) -> None:
        self.started_at = time.monotonic()
        self._handover = handover
        # before anything else is opened: it occupies the numbers of events that wait
        self.core = Core(journal_memory(handover))
        self.store = Store(root, handover.take("lock"))
        handover.keep("lock", self.store.lock)  # free only when the keeper has ended too
        self._state_path = root / "state.json"
        self._state = state.load(self._state_path)
        self._fetcher = Fetcher(self.core.trim)
        self.orphans = Orphans(self.core, handover)
        self.objects = Objects(
            self.store, self.core, self._fetcher, handover, self.orphans, self._state.numbers
        )
        self._transports = Transports(self.core, self.objects, handover, self.store)
        limit = os.environ.get("NYDUS_FSCACHE_CACHE_LIMIT")  # serve --cache-limit
        ours = OwnFiles(self.store.blobs.directory, self.objects.names, self.objects.evict)
        self._quota = Quota(
            self.store,
            [ours, *self._transports.sources()],
            self._fetcher.disk_full,
            int(limit) if limit else self._state.cache_limit,
        )
        self._tracer = Tracer(self.core, self.store.images)
        self._prefetcher = Prefetcher(self._fetcher, self._tracer)
        self.objects.on_found = self._go_on
        self._images = OpenImages(self.store.images, self._leave_backend)
        self._served: list[ActiveMount] = []
        self._waiting = RetryQueue()
        self._lock = threading.RLock()
        self._unbinding = 0
        self._unbound = threading.Condition(self._lock)
        self._stopped = threading.Event()
        self._unsaved = False  # the state file is behind
        self._end_asked = threading.Event()
        self.successor: upgrade.Successor | None = None
        raise_nofile_limit()
        with contextlib.suppress(ProcessLookupError):  # another takes its place, with our limit
            raise_nofile_limit(handover.keeper_pid)
        self._take_over()
        for work in (self._dispatch, self._keep_house, self._serve_waiting):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()
        threading.Thread(target=self._quota.keep, args=(self._stopped,), daemon=True).start()

    # -- start and end -----------------------------------------------------------------------

    def _take_over(self) -> None:
        """Bind again what the state names and the kernel still has; settle what is open."""
        useless = [self._transports.is_useless(b) for b in self._state.bindings]
        for binding, is_useless in zip(self._state.bindings, useless, strict=True):
            if not previous.is_still_there(binding, self._transports):
                log.info("%s is not mounted any more", binding.mountpoint)
                continue
            remount = is_useless and previous.is_mounted(binding)
            if remount:
                previous.unmount_useless(Path(binding.mountpoint))
            try:
                self._served.append(self._serve_again(binding, remount, may_ask=False))
            except (FscacheError, OSError) as e:
                self._waiting.add(PendingRestore(binding, remount, str(e)))
        self._transports.take_up()
        for name, transport in self._transports.in_use().items():
            if awaited := self._waiting.addresses(name):
                transport.hold(awaited)
            transport.resume()
        # without a state nothing is held, and what cannot be told apart may be of any mount
        settled = self.core.settle(all_served=self._state_path.exists())
        self.core.start()
        self._prefetcher.resume(self._served)
        if self._served:
            log.info("took over %d images, %d requests", len(self._served), settled)
        self._save()

    def _serve_again(self, binding: Binding, remount: bool, *, may_ask: bool) -> ActiveMount:
        """Without ``may_ask`` no backend is waited for, or one that hangs would hold up all."""
        served = self._bind(binding, may_ask=may_ask)
        if remount:
            try:
                transport = self._transports.get(binding.transport)
                transport.mount(served.bound, Path(binding.mountpoint))
            except BaseException:
                self._unbind([served])
                raise
        served.mounted = previous.is_mounted(binding)
        return served

    def _go_on(self) -> None:
        if self._prefetcher.go_on():
            self._save()

    def _serve_waiting(self) -> None:
        """Until all that could not be taken over is served, or is not mounted any more."""
        self._waiting.serve(self._try_again, self._deny_waiting, self._stopped)
        self._deny_waiting()

    def _deny_waiting(self) -> None:
        for transport in self._transports.in_use().values():
            transport.fail_pending()

    def _try_again(self, waiting: PendingRestore) -> None:
        binding = waiting.binding
        served = None
        try:
            if waiting.remount or previous.is_still_there(binding, self._transports):
                served = self._serve_again(binding, waiting.remount, may_ask=True)
        except (FscacheError, OSError) as e:
            waiting.failed(e)
            log.error(
                "%s cannot be served again: %s; next try in %.1f s",
                binding.source, e, waiting.next_try - time.monotonic(),
            )  # fmt: skip
            return
        with self._lock:
            was_given_up = not self._waiting.remove(waiting)
            if served is not None and not was_given_up:
                self._served.append(served)
            self._save()
        if served is not None and was_given_up:
            self._unbind([served])
        elif served is not None:
            log.info("%s is served again", binding.source)
            self._prefetcher.resume([served])

    def _forget_waiting(self, address: Address) -> bool:
        """Of what the user mounts: it is unbound, or bound anew."""
        with self._lock:
            for waiting in self._waiting.all():
                b = waiting.binding
                if not b.mountpoint and b.address == address:
                    self._waiting.remove(waiting)
                    self._save()
                    return True
        return False

    def _give_up_waiting(self, waiting: PendingRestore) -> None:
        """Unmount what is not served; raises ``MountpointError`` when it is busy."""
        if previous.is_mounted(waiting.binding):
            umount(Path(waiting.binding.mountpoint))
        with self._lock:
            if self._waiting.remove(waiting):
                self._save()

    def stop(self, request: dict[str, Any]) -> dict[str, Any]:
        """Unmount everything and end; raises ``MountpointError`` when a mount is busy."""
        busy = []
        for served in list(self._served):
            try:
                if served.mounted:
                    umount(Path(served.binding.mountpoint))
                    served.mounted = False
            except MountpointError as e:
                busy.append(str(e))
        for waiting in self._waiting.all():
            try:
                self._give_up_waiting(waiting)
            except MountpointError as e:
                busy.append(str(e))
        self._release_unused()
        if busy:
            raise MountpointError(
                "; ".join(busy), hint="end the programs that use them (fuser -vm), then stop again"
            )
        until = time.monotonic() + RELEASE_PATIENCE_S
        while (
            held := [s.binding.source for s in self._served if s.binding.mountpoint]
        ) and time.monotonic() < until:
            time.sleep(0.02)
            self._release_unused()
        if self.orphans.sweep():
            held.append("an image that is not served any more")
        if held:
            raise MountpointError(
                f"still in use: {', '.join(held)}",
                hint="unmount what lies on top of them (overlay, bind mounts), then stop again",
            )
        self._end_asked.set()
        return {}

    def close(self) -> None:
        """After ``stop``: give everything back."""
        self._stopped.set()
        self._fetcher.stop()
        with self._lock:
            served, self._served = self._served, []
        self._unbind(served)
        with self._lock:
            self._unbound.wait_for(lambda: not self._unbinding, UNBIND_PATIENCE_S)
        self.core.stop()
        self._save()
        for transport in self._transports.in_use().values():
            transport.close()
        self.objects.close()
        self.store.close()
        self._handover.bye()

    def upgrade(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make way for the service of another installation, whose interpreter is ``python``;
        ``dry_run``: only ask it whether it can take over.  The versions and the old pid."""
        with self._handover.journal() as journal:
            successor = upgrade.ask(str(request.get("python")), self.store.root, journal)
        if not request.get("dry_run"):
            with self._lock:
                if self._end_asked.is_set():
                    raise DaemonError("the service is ending", hint="see nydus-fscache status")
                self.successor = successor
                self._end_asked.set()
        versions = {"old_version": nydus_fscache.__version__, "new_version": successor.version}
        return {**versions, "pid": os.getpid()}

    def make_way(self) -> None:
        """After ``upgrade``: leave everything as a successor takes it up; to be followed by exit.

        Requests that wait stay in the journal; what is on its way is fetched again, which takes
        less time than a slow backend.
        """
        assert self.successor is not None
        log.info("making way for version %s", self.successor.version)
        self._stopped.set()
        self._handover.upgrade(self.successor.keeper, self.successor.service)
        self.core.stop()
        self._tracer.collect()
        self._save()

    def prepare(self) -> None:
        """What the first mount would wait for, while nobody does."""
        preload()
        import_module("rafs_v6.validate")
        self._transports.prepare()

    def wait_until_stopped(self) -> None:
        self._end_asked.wait()

    # -- threads -----------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Events that C could not answer alone."""
        while not self._stopped.is_set():
            for event in self.core.next(timeout_ms=1000):
                try:
                    self._handle(event)
                except Exception:  # one bad event must not end the service of the others
                    log.exception("event %s", event)
                    if isinstance(event, ReadMiss):
                        self.core.fail(event.object, event.off, event.len, errno.EIO)

    def _handle(self, event: Event) -> None:
        if isinstance(event, ReadaheadHit):
            if obj := self.objects.get(event.object):
                obj.read_ahead(event.off)
            return
        if isinstance(event, ReadMiss) and self._demand(event):
            return
        if any(transport.handle(event) for transport in self._transports.in_use().values()):
            return
        if not isinstance(event, ReadMiss):
            log.error("event that nobody expects: %s", event)
        elif not self._demand(event):  # an orphan may have been taken just now
            self.core.fail(event.object, event.off, event.len, errno.EIO)

    def _demand(self, event: ReadMiss) -> bool:
        obj = self.objects.get(event.object)
        if obj is not None:
            obj.demand(event.off, event.len)
        return obj is not None

    def _keep_house(self) -> None:
        while not self._stopped.wait(HOUSEKEEPING_S):
            try:
                self._tidy()
            except Exception:  # deadlines must be kept whatever else goes wrong
                log.exception("housekeeping")

    def _tidy(self) -> None:
        expired = self.core.expire(REQUEST_DEADLINE_S, errno.EIO)
        if expired:
            log.error("%d requests got EIO after %.0f s", expired, REQUEST_DEADLINE_S)
        for obj in self.objects.all():
            try:
                obj.persist_when_due()
            except (OSError, ValueError) as e:
                log.error("blob %s: presence is not recorded: %s", obj.name, e)
        self._tracer.collect()
        if gone := self._take_unused():
            threading.Thread(target=self._unbind, args=(gone,), daemon=True).start()
        self.orphans.sweep()
        if self._unsaved:
            self._save()

    def _leave_backend(self, backend: Backend) -> None:
        """No image has it any more."""
        self.objects.leave(backend)
        self._fetcher.forget(backend)

    # -- images --------------------------------------------------------------------------------

    def _bind(self, binding: Binding, *, may_ask: bool = True) -> ActiveMount:
        image = self._images.take(binding, may_ask=may_ask)
        try:
            self._fetcher.tune(image.backend, tuning_of(binding.tuning, "tuning"))
            transport = self._transports.get(binding.transport)
            bound = transport.bind(image, binding.address)
        except BaseException:
            self._images.give_up(image)
            raise
        self._tracer.watch(binding.digest, bound.objects)
        return ActiveMount(binding, image, bound)

    def _unbind(self, gone: list[ActiveMount]) -> None:
        """Of what is in the list no more.  Without the lock: it waits for what is on its way,
        which a backend that is stuck can make long."""
        with self._lock:
            self._unbinding += 1
        try:
            for served in gone:
                binding = served.binding
                with self._lock:
                    if not any(s.binding.digest == binding.digest for s in self._served):
                        self._tracer.unwatch(binding.digest)
                        self._prefetcher.forget(served)
                self._images.give_up(served.image)
                self._transports.get(binding.transport).unbind(served.bound)
        finally:
            with self._lock:
                self._unbinding -= 1
                self._unbound.notify_all()
            self._save()
            self._quota.collect_images(self._bindings())

    def _release_unused(self) -> None:
        """Unbind what was unmounted, once the kernel has let go of it."""
        if gone := self._take_unused():
            self._unbind(gone)

    def _take_unused(self) -> list[ActiveMount]:
        with self._lock:
            idle = [s for s in self._served if not (s.mounted or s.mounting)]
            gone = [s for s in idle if s.binding.mountpoint and not self._in_use(s)]
            self._served = [s for s in self._served if not any(s is g for g in gone)]
        return gone

    def _in_use(self, served: ActiveMount) -> bool:
        """Does the kernel have the superblock still?"""
        name = served.binding.transport
        mounted = [s.bound for s in self._served if s.mounted and s.binding.transport == name]
        return self._transports.get(name).in_use(served.bound, mounted)

    def _save(self) -> None:
        """After what cannot be undone: when the disk is full it is tried again later.

        Until then a successor sees by itself what is not mounted any more.
        """
        try:
            self._write_state()
        except CacheDirError as e:
            log.error("%s", e)

    def _bindings(self) -> list[Binding]:
        """What a successor is to serve."""
        with self._lock:
            return [s.binding for s in self._served] + [w.binding for w in self._waiting.all()]

    def _write_state(self) -> None:
        """Raises ``CacheDirError``."""
        with self._lock:
            self._state.bindings = self._bindings()
            self._state.numbers = self.objects.numbers()
            self._state.cache_limit = self._quota.limit
            self._unsaved = True
            try:
                self._state.save(self._state_path)
            except OSError as e:
                raise CacheDirError(
                    f"cannot write {self._state_path}: {e.strerror}",
                    hint="free some space, or choose another --root",
                ) from e
            self._unsaved = False

    def _enter(self, served: ActiveMount) -> None:
        """Before it is mounted: nothing is served that a successor would not know."""
        try:
            with self._lock:
                self._served.append(served)
                self._write_state()
        except BaseException:
            self._leave(served)
            raise

    def _leave(self, served: ActiveMount) -> None:
        """It is not to be served after all."""
        with self._lock:
            self._served.remove(served)
        self._unbind([served])

    # -- API -------------------------------------------------------------------------------------

    def bind(self, request: dict[str, Any]) -> dict[str, Any]:
        """Serve an image that the user mounts: ``bootstrap``, ``backend``, ``fsid``, ``domain``."""
        binding = self._binding(request, mountpoint="")
        binding.address = self._transports.get(binding.transport).user_address(request)
        self._enter(self._bind(binding))
        self._forget_waiting(binding.address)
        return dict(binding.address)

    def unbind(self, fsid: str, domain: str) -> dict[str, Any]:
        address = {"fsid": fsid, "domain": domain}
        with self._lock:
            for served in self._served:
                b = served.binding
                if not b.mountpoint and b.address == address:
                    if self._in_use(served):
                        raise MountpointError(f"{fsid} is mounted", hint="unmount it first")
                    self._served.remove(served)
                    break
            else:
                if self._forget_waiting(address):
                    return {**address}
                raise UsageError(f"{fsid} is not bound", hint="see nydus-fscache status")
        self._unbind([served])
        return {**address}

    def mount(self, request: dict[str, Any]) -> dict[str, Any]:
        """``bootstrap`` (path), ``backend`` (config object), ``mountpoint``, ``transport``,
        ``source`` (what to show).  Returns when the mount can be read."""
        mountpoint = mountpoint_of(request, self.store)
        policy = policy_of(request, "auto")
        if request.get("cache_limit") is not None:
            self._quota.limit = size_of(request["cache_limit"], "cache_limit")
        binding = self._binding(request, mountpoint=str(mountpoint))
        if policy == "auto":
            policy = binding.tuning.get("prefetch") or policy
        transport = self._transports.get(binding.transport)
        binding.address = transport.new_address(binding.digest, self._addresses(binding.transport))
        served = self._bind(binding)
        served.mounting = True
        # over cachefiles there is nothing to fill until the kernel has opened it
        is_open = served.is_open
        if is_open:  # the first data are on their way while the rest is done
            try:
                self._prefetcher.begin(served, policy, [])
            except BaseException:
                self._unbind([served])
                raise
        self._enter(served)
        try:
            if not self.core.started:
                raise DaemonError("the event core does not run", hint="see the log")
            transport.mount(served.bound, mountpoint)
            if not is_open:
                self._prefetcher.begin_when_open(served, policy)
                self._save()
        except BaseException:
            self._leave(served)
            raise
        served.mounted, served.mounting = True, False
        log.info("mounted %s at %s over %s", binding.source, mountpoint, binding.transport)
        return {"mountpoint": str(mountpoint), "transport": binding.transport}

    def prefetch(self, request: dict[str, Any]) -> dict[str, Any]:
        """``mountpoint``; ``paths`` (list) or ``prefetch`` (policy): returns the run's number."""
        mountpoint = request.get("mountpoint")
        policy, paths = policy_of(request, "all"), paths_of(request)
        with self._lock:
            found = [s for s in self._served if s.mounted and s.binding.mountpoint == mountpoint]
        if not found:
            raise MountpointError(
                f"nothing of ours is mounted at {mountpoint}", hint="see nydus-fscache status"
            )
        number = self._prefetcher.begin(found[0], policy, paths)
        self._save()
        return {"id": number}

    def login(self, request: dict[str, Any]) -> dict[str, Any]:
        """``auth`` (base64 of user:password) for all images from the registry ``host``."""
        host, auth = str(request.get("host")), check_auth(str(request.get("auth", "")))
        with self._lock:
            found = [b for b in self._bindings() if renew_auth(b.backend, host, auth)]
            for served in self._served:
                if served.binding in found:
                    served.image.backend.reauth(auth)
        if not found:
            raise UsageError(f"no image is mounted from {host}", hint="see nydus-fscache status")
        self._save()
        log.info("new credentials for %d images of %s", len(found), host)
        return {"host": host, "images": len(found)}

    def prefetches(self) -> dict[str, Any]:
        return {"prefetches": self._prefetcher.progress()}

    def gc(self, request: dict[str, Any]) -> dict[str, Any]:
        """Evict unused blobs until the cache takes ``to`` bytes; ``dry_run``: only say which."""
        self._release_unused()
        target, dry_run = size_of(request.get("to") or 0, "to"), bool(request.get("dry_run"))
        return self._quota.gc(target, self._bindings(), dry_run=dry_run)

    def trace(self, digest: str) -> dict[str, Any]:
        """The access trace of the image whose bootstrap has this sha256."""
        return self._tracer.document(digest_of(digest))

    def _binding(self, request: dict[str, Any], mountpoint: str) -> Binding:
        with self._lock:
            mounted = {s.binding.mountpoint for s in self._served if s.mounted}
        wanted = image_of(request, self.store, mounted)
        transport = self._transports.choose(str(request.get("transport") or "auto"))
        digest, _ = self.store.keep_bootstrap(wanted.bootstrap)
        return Binding(
            digest=digest,
            backend=wanted.backend,
            transport=transport,
            address={},
            mountpoint=mountpoint,
            source=wanted.source,
            tuning=wanted.tuning,
        )

    def _addresses(self, transport: str) -> list[Address]:
        return [b.address for b in self._bindings() if b.transport == transport]

    def umount(self, mountpoint: str) -> dict[str, Any]:
        with self._lock:
            served = next(
                (s for s in self._served if s.mounted and s.binding.mountpoint == mountpoint), None
            )
            for waiting in [w for w in self._waiting.all() if w.binding.mountpoint == mountpoint]:
                self._give_up_waiting(waiting)
                return {"mountpoint": mountpoint}
        if served is None:
            raise MountpointError(
                f"nothing of ours is mounted at {mountpoint}", hint="see nydus-fscache status"
            )
        umount(Path(mountpoint))
        served.mounted = False
        self._release_unused()
        log.info("unmounted %s", mountpoint)
        return {"mountpoint": mountpoint}

    def status(self) -> dict[str, Any]:
        with self._lock:
            served = list(self._served)
        return {
            "version": nydus_fscache.__version__,
            "root": str(self.store.root),
            "pid": os.getpid(),
            "keeper_pid": self._handover.keeper_pid,
            "upgrade_error": os.environ.get(keeper.UPGRADE_ERROR, ""),
            "waiting": [w.document() for w in self._waiting.all()],
            **status_document(map(_status_of, served), self.objects, self.core, self.started_at),
        }


def _status_of(mount: ActiveMount) -> MountStatus:
    binding = mount.binding
    return MountStatus(
        mountpoint=binding.mountpoint,
        image=binding.source,
        bootstrap_digest=f"sha256:{binding.digest}",
        transport=binding.transport,
        fsid=binding.address.get("fsid", ""),
        domain=binding.address.get("domain", ""),
        mounted=mount.mounted,
        backend=mount.image.backend.name,
        blobs=[blob.info.blob_id for blob in mount.image.blobs],
    )
