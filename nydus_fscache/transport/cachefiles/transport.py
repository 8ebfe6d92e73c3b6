"""cachefiles on-demand (Linux 5.19 to 7.1).

The kernel owns the cache files and names what it opens: the volume is
``erofs,<domain>`` (or ``erofs,<fsid>`` for a mount without domain_id), the
cookie is the fsid for the bootstrap and the device tag, which RAFS sets to the
blob id, for a blob.  It never asks for what its file has, so presence is read
off the file (SEEK_DATA), and nothing needs to be recorded.

A successor goes on with the objects that are open, by their descriptors (parked.py).  What was
asked and not answered the kernel sends again, told to by ``restore``; before Linux 6.8, without
the fixes of 2024, it has no such command, and the successor answers what the journal holds.
Source: reference kernel-transports 1, fscache-vm 3.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from nydus_fscache.cache.presence import PAGE, PageMap
from nydus_fscache.core.core import Core
from nydus_fscache.core.events import Closed, DeviceError, Event, Opened, ReadMiss, StaleRead
from nydus_fscache.core.park import Park
from nydus_fscache.errors import UsageError
from nydus_fscache.fetch.cache_object import CacheObject
from nydus_fscache.fetch.job import Source
from nydus_fscache.fetch.objects import Objects
from nydus_fscache.files import data_ranges
from nydus_fscache.image.binding import Address
from nydus_fscache.image.image import Image
from nydus_fscache.transport.base import Bound
from nydus_fscache.transport.cachefiles.bootstraps import Bootstraps
from nydus_fscache.transport.cachefiles.device import (
    DESCRIPTOR,
    DEVICE,
    NAME,
    has_file,
    open_and_bind,
    wait_for_backing_file,
)
from nydus_fscache.transport.cachefiles.domains import (
    BoundNames,
    Domain,
    domain_key,
    free_address,
    names_of,
)
from nydus_fscache.transport.cachefiles.fsid_mount import mount_apart
from nydus_fscache.transport.cachefiles.kernel_cache import (
    KernelCache,
    is_held,
    open_cookies,
)
from nydus_fscache.transport.cachefiles.parked import ParkedObjects, UnboundObject, domain_of

log = logging.getLogger("cachefiles")

_RESEND_PAUSE_S = 0.2  # in which READs that were lost are gathered


class CachefilesTransport:
    name = NAME

    def __init__(
        self, core: Core, objects: Objects, park: Park, cache: KernelCache
    ) -> None:
        self._core = core
        self._objects = objects
        self._lock = threading.RLock()
        self._cache = cache
        self._domains: dict[str, Domain] = {}
        self._bootstraps = Bootstraps(core)
        self._unbound: dict[int, UnboundObject] = {}  # by number
        self._kernel_objects: dict[int, int] = {}  # the kernel's numbers by ours
        self._awaited: set[str] = set()  # domains of which images are bound soon
        self._unanswered: list[Opened] = []  # OPENs of these
        self._resending = False
        inherited = park.take(DESCRIPTOR)
        self._took_over = inherited is not None
        if inherited is None:
            self._cache.drop_unsynced()
            self._device = open_and_bind(cache.directory)
            park.keep(DESCRIPTOR, self._device)
        else:
            self._device = inherited
        cache.device, cache.written = self._device, self._written
        objects.copies.kernel_file = cache.reading
        core.attach_cachefiles(self._device)
        self._parked = ParkedObjects(core, park)

    def resume(self) -> None:
        """OPENs are answered with the descriptors that were kept; READs are sent again, or else
        taken from the journal."""
        if not self._took_over:
            return
        for event in self._parked.take_all():
            self._hold_inherited(event)
        for event in self._parked.asked:
            self._open(event, again=True)
        # an OPEN that waits for its image would come again, and fail: it has its descriptor
        if not self._unanswered and self._restore():
            self._core.resent()
            return
        for event in self._parked.lost:
            log.error("open of %s was lost with its descriptor: EIO", event.cookie)
            with contextlib.suppress(OSError):
                self._core.copen(event.msg_id, -errno.EIO)

    def _restore(self) -> bool:
        """False: this kernel does not know how to send again."""
        try:
            os.write(self._device, b"restore")
        except OSError as e:
            log.warning("this kernel sends nothing again (restore: %s)", e.strerror)
            return False
        return True

    def hold(self, awaited: Collection[Address]) -> None:
        with self._lock:
            self._awaited = {domain_key(address) for address in awaited}

    def fail_pending(self) -> None:
        with self._lock:
            self._awaited = set()
            opens, self._unanswered = self._unanswered, []
            for oid, held in self._unbound.items():
                held.misses.clear()
                self._core.fail(oid, 0, held.size, errno.EIO)
        for event in opens:
            self._open(event)

    def tidy(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """After the last unmount: what is cached outlives a reboot."""
        self._cache.mark_synced()

    def new_address(self, digest: str, taken: Collection[Address]) -> Address:
        return free_address(digest, taken)

    def user_address(self, request: Mapping[str, Any]) -> Address:
        fsid, domain = str(request.get("fsid", "")), str(request.get("domain", ""))
        if not fsid:
            raise UsageError("no fsid", hint="name the image with --fsid")
        fsid, domain = names_of({"fsid": fsid, "domain": domain})
        return {"fsid": fsid, "domain": domain}

    def bind(self, image: Image, address: Address) -> BoundNames:
        fsid, key = names_of(address)[0], domain_key(address)
        with self._lock:
            entry = self._domains.get(key) or Domain()
            entry.check(image, fsid, key)
            blobs = {b.info.blob_id: b.identity for b in image.blobs}
            self._cache.prepare(key, fsid, image.path, blobs)
            names = BoundNames(image, address, [])
            for obj in entry.objects():
                if obj.source.blob_id in blobs:
                    self._objects.add_source(obj, Source(image.backend, obj.source.blob_id))
            self._domains[key] = entry
            entry.images[fsid] = image
            entry.bound[fsid] = names
            for event in self._parked.take(key, {fsid, *blobs}):
                if (oid := self._adopt(event)) is None:
                    self._hold_inherited(event)
                else:
                    self._begin(oid)
            for oid in [o for o, held in self._unbound.items() if domain_of(held.event) == key]:
                self._take_unbound(oid)
            opens = [e for e in self._unanswered if domain_of(e) == key]
            self._unanswered = [e for e in self._unanswered if e not in opens]
        for event in opens:
            self._open(event)
        return names

    def _written(self) -> dict[str, int]:
        """Bytes that are in the open blobs' files, by DOMAIN/COOKIE."""
        with self._lock:
            return {
                f"{domain}/{obj.source.blob_id}": obj.pages.bytes_present()
                for domain, entry in self._domains.items()
                for obj in entry.objects()
            }

    def check_can_mount(self) -> None:
        """Nothing is ever mounted anew (``Dialect.is_useless``)."""

    def mount(self, bound: Bound, target: Path) -> None:
        mount_apart(target, *names_of(bound.address))

    def in_use(self, bound: Bound, mounted: Collection[Bound]) -> bool:
        fsid, key = names_of(bound.address)[0], domain_key(bound.address)
        with self._lock:
            others = (self._domains.get(key) or Domain()).blobs_of_others(fsid)
        blobs = {blob.info.blob_id for blob in bound.image.blobs} - others
        return is_held(key, fsid, blobs)

    def is_independent(self, bound: Bound) -> bool:
        """Never: without its device the kernel gives up the cache, complete or not."""
        return False

    def unbind(self, bound: Bound) -> None:
        fsid, key = names_of(bound.address)[0], domain_key(bound.address)
        with self._lock:
            entry = self._domains[key]
            del entry.images[fsid], entry.bound[fsid]
            if not entry.images:
                del self._domains[key]
            else:  # blobs that others have mounted too are theirs now
                next(iter(entry.bound.values())).objects.extend(bound.objects)
            self._cache.let_go(key, fsid)

    # -- events ------------------------------------------------------------------------------

    def handle(self, event: Event) -> bool:
        if isinstance(event, Opened):
            self._open(event)
        elif isinstance(event, Closed):
            self._close(event.object)
        elif isinstance(event, ReadMiss):
            return self._missed(event)
        elif isinstance(event, StaleRead):
            self._send_again()
        elif isinstance(event, DeviceError):
            log.error("read of %s: %s", DEVICE, os.strerror(event.errno))
        return True

    def _open(self, event: Opened, *, again: bool = False) -> None:
        """Answer the OPEN; what was made for it goes when the answer is no, or is not taken.

        ``again``: a predecessor may have answered it; then the object has its file."""
        domain, name = domain_of(event), event.cookie
        oid, size = 0, -errno.EIO
        try:
            self._parked.keep(event)
            oid, size = self._register(event, domain, name)
        except Exception as e:  # unanswered, the kernel would wait where nothing can kill it
            log.exception("open of %s in domain %s", name, domain)
            size = -((isinstance(e, OSError) and e.errno) or errno.EIO)
        if size == -errno.ENOENT:
            with self._lock:
                if domain in self._awaited:
                    self._unanswered.append(event)
                    return
            log.error("the kernel opens %s in domain %s, which nobody bound", name, domain)
        try:
            self._core.copen(event.msg_id, size)
        except OSError as e:
            if not (again and has_file(event.fd)):
                log.warning("open of %s in domain %s is not wanted any more: %s", name, domain, e)
                size = -errno.EBADF
        if size >= 0:
            self._begin(oid)
        elif oid:
            self._close(oid)
        else:
            self._parked.let_go(event.kernel_object)
            os.close(event.fd)

    def _register(self, event: Opened, domain: str, name: str) -> tuple[int, int]:
        """(number of the object, its size); (0, -ENOENT) when it is nobody's."""
        with self._lock:
            oid = self._adopt(event)
            if oid is not None:
                return oid, self._size(oid)
            if open_cookies(domain).get(name):
                return self._hold(event)
        return 0, -errno.ENOENT

    def _size(self, oid: int) -> int:
        obj = self._objects.get(oid)
        return obj.chunks.flat_size if obj is not None else self._bootstraps.size(oid)

    def _adopt(self, event: Opened, held: tuple[int, PageMap] | None = None) -> int | None:
        """The number of the object when an image is bound that has it.  With the lock.

        ``held``: its number and page map, when the C core knows it already."""
        domain = domain_of(event)
        entry = self._domains.get(domain)
        if entry is None:
            return None
        image = entry.images.get(event.cookie)
        if image is not None:
            oid = self._open_bootstrap(event, image, held)
        else:
            obj = self._open_blob(event, domain, entry, held)
            if obj is None:
                return None
            oid = obj.oid
        self._kernel_objects[oid] = event.kernel_object
        return oid

    def _open_bootstrap(
        self, event: Opened, image: Image, held: tuple[int, PageMap] | None
    ) -> int:
        oid, pages = held or self._number(event, image.size)
        self._bootstraps.add(oid, image, pages)
        return oid

    def _number(self, event: Opened, size: int) -> tuple[int, PageMap]:
        return self._objects.number_kernel(event.kernel_object, event.fd, size)

    def _open_blob(
        self, event: Opened, domain: str, entry: Domain, held: tuple[int, PageMap] | None
    ) -> CacheObject | None:
        obj = None
        for fsid, image in entry.images.items():
            for blob in image.blobs:
                if blob.info.blob_id != event.cookie:
                    continue
                if obj is None:
                    name = f"{domain}/{event.cookie}#{event.kernel_object}"
                    obj = self._objects.add_kernel(
                        name, blob, image.backend, event.kernel_object, event.fd, held
                    )
                    entry.bound[fsid].objects.append(obj)
                else:  # all images of the domain have it from their own backends
                    self._objects.add_source(obj, Source(image.backend, event.cookie))
        return obj

    def _hold(self, event: Opened) -> tuple[int, int]:
        """(number, size) of an object that nobody has bound, and that a living mount reads.

        Refused, the kernel would open it again for the same reader, without end.  Its
        readers wait if it is bound soon, or else get EIO.
        """
        domain = domain_of(event)
        if domain not in self._awaited:
            log.error("%s in domain %s cannot be served: EIO", event.cookie, domain)
        size = max(os.lseek(event.fd, 0, os.SEEK_END), PAGE)
        oid, pages = self._number(event, size)
        self._unbound[oid] = UnboundObject(event, size, pages)
        self._kernel_objects[oid] = event.kernel_object
        return oid, size

    def _hold_inherited(self, event: Opened) -> None:
        try:
            with self._lock:
                self._hold(event)
        except OSError as e:  # the kernel has no file of it: nobody can read it
            log.warning("%s is let go: %s", event.cookie, e.strerror)
            self._parked.let_go(event.kernel_object)
            os.close(event.fd)

    def _take_unbound(self, oid: int) -> None:
        """An image is bound that may have the object.  With the lock."""
        held = self._unbound[oid]
        size = self._domains[domain_of(held.event)].size_of(held.event.cookie)
        # a page map of another size would be written beyond its end
        if -(-size // PAGE) != -(-held.size // PAGE):
            return
        if self._adopt(held.event, (oid, held.pages)) is not None:
            del self._unbound[oid]
            self._begin(oid)
            if obj := self._objects.get(oid):
                for off, length in held.misses:
                    obj.demand(off, length)

    def _begin(self, oid: int) -> None:
        if self._bootstraps.fill(oid):
            return
        with self._lock:  # a CLOSE that is handled meanwhile would free the descriptor's number
            obj = self._objects.get(oid)
            fd = os.dup(obj.fill_fd) if obj is not None else -1
        if obj is not None:
            self._in_background(self._find_present, obj, fd)

    def _close(self, oid: int) -> None:
        with self._lock:
            if (kernel_object := self._kernel_objects.pop(oid, None)) is not None:
                self._parked.let_go(kernel_object)
            if self._bootstraps.remove(oid) or oid in self._unbound:
                self._unbound.pop(oid, None)
                self._core.remove_object(oid)
                return
            obj = self._objects.get(oid)
            if obj is None:
                return
            for entry in self._domains.values():
                entry.forget(obj)
        self._in_background(self._objects.release, obj)

    def _missed(self, event: ReadMiss) -> bool:
        """Of a bootstrap, or of an object that no image is bound for."""
        if self._bootstraps.fill(event.object):
            return True
        with self._lock:
            held = self._unbound.get(event.object)
            if held is not None and domain_of(held.event) in self._awaited:
                held.misses.append((event.off, event.len))
                return True
        return False

    def _send_again(self) -> None:
        """A READ came for an object that had just been closed here: once the kernel knows that,
        it opens the object again, and sends the READ when it is told to."""
        with self._lock:
            if self._resending:
                return
            self._resending = True

        def restore() -> None:
            time.sleep(_RESEND_PAUSE_S)
            with self._lock:
                self._resending = False
            self._restore()

        self._in_background(restore)

    # -- in the background: the reader of events must never wait ---------------------------------

    def _in_background(self, work: Callable[..., object], *args: Any) -> None:
        threading.Thread(target=work, args=args, daemon=True).start()

    def _find_present(self, obj: CacheObject, fd: int) -> None:
        """``fd``: of the object's file, closed here."""
        size = obj.chunks.flat_size
        extents: list[tuple[int, int]] = []
        try:
            wait_for_backing_file(fd)
            for off, end in data_ranges(fd, size):
                extents.append((off, size if end >= size - size % PAGE else end))
        except OSError as e:
            log.warning("blob %s: what is cached cannot be told: %s", obj.name, e)
        finally:
            os.close(fd)
        obj.found_on_disk(extents)
        self._objects.on_found()
