"""cachefiles on-demand (Linux 5.19 to 7.1).

The kernel owns the cache files and names what it opens: the volume is
``erofs,<domain>`` (or ``erofs,<fsid>`` for a mount without domain_id), the
cookie is the fsid for the bootstrap and the device tag, which RAFS sets to the
blob id, for a blob.  It never asks for what its file has, so presence is read
off the file (SEEK_DATA), and nothing needs to be recorded.
Source: reference kernel-transports 1, fscache-vm 3.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nydus_fscache.cache.object import CacheObject, Source
from nydus_fscache.cache.objects import Objects
from nydus_fscache.cache.presence import PAGE, PageMap
from nydus_fscache.core import Broken, Closed, Core, Event, Lost, Missed, Opened
from nydus_fscache.errors import KernelRefused
from nydus_fscache.files import data_ranges
from nydus_fscache.handover import Handover
from nydus_fscache.image import Image
from nydus_fscache.transport.base import Bound
from nydus_fscache.transport.fsid_mount import mount_apart
from nydus_fscache.transport.kernel_cache import (
    KernelCache,
    checked_name,
    is_held,
    open_cookies,
)

log = logging.getLogger("cachefiles")

DEVICE = "/dev/cachefiles"
TAG = "nydus-fscache"
_BACKING_FILE_PATIENCE_S = 5.0
_OPEN_PATIENCE_S = 5.0
_RETRY_S = 0.02
_RESEND_PAUSE_S = 0.2  # in which READs that were lost are gathered
_FILL_STEP = 1 << 20


@dataclass(frozen=True, slots=True)
class BoundNames:
    """Nothing is open until the kernel asks; ``objects`` are those that it has opened."""

    objects: list[CacheObject]


@dataclass(slots=True)
class _Bootstrap:
    """The bootstrap's object in the C core; its page map must outlive it."""

    image: Image
    pages: PageMap
    filling: bool = False


@dataclass(slots=True)
class _Domain:
    images: dict[str, Image] = field(default_factory=dict)  # by fsid
    bound: dict[str, BoundNames] = field(default_factory=dict)


class CachefilesTransport:
    name = "cachefiles"

    def __init__(
        self, core: Core, objects: Objects, handover: Handover, cache: KernelCache
    ) -> None:
        self._core = core
        self._objects = objects
        self._lock = threading.RLock()
        self._cache = cache
        self._domains: dict[str, _Domain] = {}
        self._bootstraps: dict[int, _Bootstrap] = {}  # by number, as in the C core
        self._orphans: dict[int, tuple[str, PageMap]] = {}  # of domains, not bound, and read
        self._resending = False
        inherited = handover.take("cachefiles")
        self._took_over = inherited is not None
        if inherited is None:
            self._cache.drop_unsynced()
            self._device = _open_and_bind(cache.directory)
            handover.keep("cachefiles", self._device)
        else:
            self._device = inherited
        cache.device, cache.written = self._device, self._written
        objects.copies.kernel_file = cache.reading
        core.attach_cachefiles(self._device)

    def resume(self) -> None:
        """Have the kernel send again what a predecessor had not answered."""
        if self._took_over:
            self._restore()

    def _restore(self) -> None:
        try:
            os.write(self._device, b"restore")
        except OSError as e:  # EOPNOTSUPP: Linux 5.19 to 6.7 without the fixes of 2024
            log.error(
                "this kernel cannot send again what was not answered (%s): mounts of before are "
                "dead, their readers get EIO; unmount them and mount again", e.strerror,
            )  # fmt: skip

    def close(self) -> None:
        """After the last unmount: what is cached outlives a reboot."""
        self._cache.mark_synced()

    def bind(self, image: Image, fsid: str, domain: str) -> BoundNames:
        checked_name(fsid, "fsid")
        key = checked_name(domain, "domain") if domain else fsid
        with self._lock:
            entry = self._domains.get(key) or _Domain()
            _check_shared(entry, image, fsid, key)
            blobs = {b.info.blob_id: b.identity for b in image.blobs}
            self._cache.prepare(key, fsid, image.path, blobs)
            names = BoundNames([])
            for obj in [o for bound in entry.bound.values() for o in bound.objects]:
                if obj.source.blob_id in blobs:
                    self._objects.add_source(obj, Source(image.backend, obj.source.blob_id))
            for oid in [o for o, (its, _) in self._orphans.items() if its == key]:
                self._core.remove_object(oid)  # closed, the kernel opens it again when it is read
                del self._orphans[oid]
            self._domains[key] = entry
            entry.images[fsid] = image
            entry.bound[fsid] = names
            return names

    def _written(self) -> dict[str, int]:
        """Bytes that are in the open blobs' files, by DOMAIN/COOKIE."""
        with self._lock:
            return {
                f"{domain}/{obj.source.blob_id}": obj.pages.bytes_present()
                for domain, entry in self._domains.items()
                for bound in entry.bound.values()
                for obj in bound.objects
            }

    def mount(
        self, image: Image, bound: Bound, target: Path, fsid: str, domain: str
    ) -> None:
        mount_apart(target, fsid, domain)

    def in_use(self, image: Image, fsid: str, domain: str) -> bool:
        with self._lock:
            entry = self._domains.get(domain or fsid) or _Domain()
            others = {
                blob.info.blob_id
                for other, its in entry.images.items()
                if other != fsid
                for blob in its.blobs
            }
        blobs = {blob.info.blob_id for blob in image.blobs} - others
        return is_held(domain or fsid, fsid, blobs)

    def unbind(self, image: Image, bound: Bound, fsid: str, domain: str) -> None:
        with self._lock:
            entry = self._domains[domain or fsid]
            del entry.images[fsid], entry.bound[fsid]
            if not entry.images:
                del self._domains[domain or fsid]
            else:  # blobs that others have mounted too are theirs now
                next(iter(entry.bound.values())).objects.extend(bound.objects)
            self._cache.let_go(domain or fsid, fsid)

    # -- events ------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        if isinstance(event, Opened):
            self._open(event)
        elif isinstance(event, Closed):
            self._close(event.object)
        elif isinstance(event, Missed):
            self._bootstrap_missed(event)
        elif isinstance(event, Lost):
            self._send_again()
        elif isinstance(event, Broken):
            log.error("read of %s: %s", DEVICE, os.strerror(event.errno))

    def _open(self, event: Opened) -> None:
        """Answer the OPEN; what was made for it goes when the answer is no, or is not taken."""
        domain, name = event.volume.removeprefix("erofs,"), event.cookie
        oid, size = 0, -errno.EIO
        try:
            oid, size = self._register(event, domain, name)
        except Exception as e:  # unanswered, the kernel would wait where nothing can kill it
            log.exception("open of %s in domain %s", name, domain)
            size = -((isinstance(e, OSError) and e.errno) or errno.EIO)
        if size == -errno.ENOENT:
            log.error("the kernel opens %s in domain %s, which nobody bound", name, domain)
        try:
            self._core.copen(event.msg_id, size)
        except OSError as e:
            log.warning("open of %s in domain %s is not wanted any more: %s", name, domain, e)
            size = -errno.EBADF
        if size >= 0:
            self._begin(oid)
        elif oid:
            self._close(oid)
        else:
            os.close(event.fd)

    def _register(self, event: Opened, domain: str, name: str) -> tuple[int, int]:
        """(number of the object, its size); (0, -ENOENT) when it is nobody's."""
        with self._lock:
            entry = self._domains.get(domain)
            image = entry.images.get(name) if entry else None
            if image is not None:
                return self._open_bootstrap(event, image), image.size
            obj = self._open_blob(event, domain, entry) if entry else None
            if obj is not None:
                return obj.oid, obj.chunks.flat_size
            if open_cookies(domain).get(name):
                return self._open_orphan(event, domain)
        return 0, -errno.ENOENT

    def _open_bootstrap(self, event: Opened, image: Image) -> int:
        oid = self._objects.next_number()
        pages = PageMap(image.size)
        self._core.add_object(oid, 0, 0, event.fd, image.size, pages.memory, aligned=True)
        self._core.bind_kernel(oid, event.kernel_object, event.fd)
        self._bootstraps[oid] = _Bootstrap(image, pages)
        return oid

    def _open_blob(self, event: Opened, domain: str, entry: _Domain) -> CacheObject | None:
        obj = None
        for fsid, image in entry.images.items():
            for blob in image.blobs:
                if blob.info.blob_id != event.cookie:
                    continue
                if obj is None:
                    name = f"{domain}/{event.cookie}#{event.kernel_object}"
                    obj = self._objects.add_kernel(
                        name, blob, image.backend, event.kernel_object, event.fd
                    )
                    entry.bound[fsid].objects.append(obj)
                else:  # all images of the domain have it from their own backends
                    self._objects.add_source(obj, Source(image.backend, event.cookie))
        return obj

    def _open_orphan(self, event: Opened, domain: str) -> tuple[int, int]:
        """A mount that lives, whose binding a predecessor lost.

        Refused, the kernel would open it again for the same reader, without end.  Of an
        object of no size the C core completes every READ without data, which is EIO.
        """
        log.error("%s in domain %s cannot be served: EIO", event.cookie, domain)
        size = os.lseek(event.fd, 0, os.SEEK_END)
        oid, pages = self._objects.next_number(), PageMap(PAGE)
        self._core.add_object(oid, 0, 0, event.fd, 0, pages.memory, aligned=True)
        self._core.bind_kernel(oid, event.kernel_object, event.fd)
        self._orphans[oid] = domain, pages
        return oid, max(size, PAGE)

    def _begin(self, oid: int) -> None:
        with self._lock:
            bootstrap, obj = self._bootstraps.get(oid), self._objects.get(oid)
            if bootstrap is not None:
                self._fill_soon(oid, bootstrap)
        if obj is not None:
            self._in_background(self._find_present, obj)

    def _close(self, oid: int) -> None:
        with self._lock:
            if self._bootstraps.pop(oid, None) or self._orphans.pop(oid, None):
                self._core.remove_object(oid)
                return
            obj = self._objects.get(oid)
            if obj is None:
                return
            for entry in self._domains.values():
                for bound in entry.bound.values():
                    if obj in bound.objects:
                        bound.objects.remove(obj)
        self._in_background(self._objects.release, obj)

    def _bootstrap_missed(self, event: Missed) -> None:
        """Nobody waits for long for what is being written; what could not be is tried again."""
        with self._lock:
            bootstrap = self._bootstraps.get(event.object)
            if bootstrap is not None:
                self._fill_soon(event.object, bootstrap)
                return
        self._core.fail(event.object, event.off, event.len, errno.EIO)

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

    def _fill_soon(self, oid: int, bootstrap: _Bootstrap) -> None:
        """With the lock."""
        if not bootstrap.filling:
            bootstrap.filling = True
            self._in_background(self._fill_bootstrap, oid, bootstrap)

    def _fill_bootstrap(self, oid: int, bootstrap: _Bootstrap) -> None:
        """Write it whole: the kernel reads metadata page by page, one request each."""
        image, error = bootstrap.image, 0
        try:
            with image.path.open("rb") as f:
                for off in range(0, image.size, _FILL_STEP):
                    self._core.fill_flat(oid, off, f.read(_FILL_STEP))
        except OSError as e:
            log.error("bootstrap of %s: %s", image.digest, e)
            error = errno.EIO
        with self._lock:
            bootstrap.filling = False
        if error:  # after that: who comes later starts another try
            self._core.fail(oid, 0, image.size, error)

    def _find_present(self, obj: CacheObject) -> None:
        size = obj.chunks.flat_size
        extents: list[tuple[int, int]] = []
        try:
            _wait_for_backing_file(obj.fill_fd)
            for off, end in data_ranges(obj.fill_fd, size):
                extents.append((off, size if end >= size - size % PAGE else end))
        except OSError as e:
            log.warning("blob %s: what is cached cannot be told: %s", obj.name, e)
        obj.found_on_disk(extents)


def _wait_for_backing_file(fd: int) -> None:
    """The kernel makes it only some time after copen; until then seeking is ENOBUFS."""
    deadline = time.monotonic() + _BACKING_FILE_PATIENCE_S
    while True:
        try:
            os.lseek(fd, 0, os.SEEK_DATA)
            return
        except OSError as e:
            if e.errno == errno.ENXIO:
                return
            if e.errno != errno.ENOBUFS or time.monotonic() > deadline:
                raise
        time.sleep(_RETRY_S)


def _check_shared(entry: _Domain, image: Image, fsid: str, domain: str) -> None:
    """The kernel knows what is in a domain by one name alone, and has one file for it."""
    known = {b.info.blob_id: b.identity for i in entry.images.values() for b in i.blobs}
    if fsid in entry.images:
        raise KernelRefused(f"{fsid} is bound already", hint="unbind it, or take another fsid")
    if fsid in known or {fsid, *entry.images} & {b.info.blob_id for b in image.blobs}:
        raise KernelRefused(
            f"in domain {domain} a blob would have the name of a bootstrap",
            hint="bind it in a domain of its own",
        )
    for blob in image.blobs:
        if known.get(blob.info.blob_id, blob.identity) != blob.identity:
            raise KernelRefused(
                f"another image of domain {domain} describes blob {blob.info.blob_id} "
                "differently",
                hint="bind it in a domain of its own",
            )


def _open_and_bind(directory: Path) -> int:
    """The device, bound to ``directory``; one opener at a time, so a successor may have to wait."""
    deadline = time.monotonic() + _OPEN_PATIENCE_S
    while True:
        try:
            device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
            break
        except OSError as e:
            if e.errno != errno.EBUSY or time.monotonic() > deadline:
                hint = "another daemon has it" if e.errno == errno.EBUSY else "modprobe cachefiles"
                raise KernelRefused(f"cannot open {DEVICE}: {e.strerror}", hint=hint) from e
        time.sleep(_RETRY_S)
    try:
        for command in (f"dir {directory}", f"tag {TAG}", "bind ondemand"):
            os.write(device, command.encode())
    except OSError as e:
        os.close(device)
        raise KernelRefused(
            f"cachefiles refused {command!r}: {e.strerror}",
            hint="it needs CONFIG_CACHEFILES_ONDEMAND and a directory on ext4, xfs or btrfs",
        ) from e
    return device
