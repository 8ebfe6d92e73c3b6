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
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from nydus_fscache import kernel
from nydus_fscache.cache.object import CacheObject
from nydus_fscache.cache.objects import Objects
from nydus_fscache.cache.presence import PAGE, PageMap
from nydus_fscache.cache.store import Store
from nydus_fscache.core import Closed, Core, Event, Opened
from nydus_fscache.errors import KernelRefused
from nydus_fscache.files import replace_file, status_of_ours, sync
from nydus_fscache.handover import Handover
from nydus_fscache.image import Image
from nydus_fscache.transport.base import Bound
from nydus_fscache.transport.fsid_mount import mount_apart

log = logging.getLogger("cachefiles")

_T = TypeVar("_T")

DEVICE = "/dev/cachefiles"
TAG = "nydus-fscache"
USED_IN = "used-in"
_BACKING_FILE_PATIENCE_S = 5.0
_OPEN_PATIENCE_S = 5.0
_RETRY_S = 0.02
_FILL_STEP = 1 << 20


@dataclass(frozen=True, slots=True)
class BoundNames:
    """Nothing is open until the kernel asks; ``objects`` are those that it has opened."""

    objects: list[CacheObject]


@dataclass(slots=True)
class _Bootstrap:
    """The bootstrap's object in the C core; its page map must outlive it."""

    oid: int
    pages: PageMap


@dataclass(slots=True)
class _Domain:
    images: dict[str, Image] = field(default_factory=dict)  # by fsid
    bound: dict[str, BoundNames] = field(default_factory=dict)


class CachefilesTransport:
    name = "cachefiles"

    def __init__(self, core: Core, objects: Objects, handover: Handover, store: Store) -> None:
        self._core = core
        self._objects = objects
        self._lock = threading.RLock()
        self._directory = store.cachefiles
        self._domains: dict[str, _Domain] = {}
        self._bootstraps: dict[tuple[str, str], _Bootstrap] = {}
        inherited = handover.take("cachefiles")
        self._took_over = inherited is not None
        if inherited is None:
            _drop_unsynced(store.cachefiles)
            self._device = _open_and_bind(store.cachefiles)
            handover.keep("cachefiles", self._device)
        else:
            self._device = inherited
        core.attach_cachefiles(self._device)

    def resume(self) -> None:
        """Have the kernel send again what a predecessor had not answered."""
        if self._took_over:
            os.write(self._device, b"restore")

    def bind(self, image: Image, fsid: str, domain: str) -> BoundNames:
        with self._lock:
            entry = self._domains.get(domain or fsid) or _Domain()
            _check_shared(entry, image, fsid, domain)
            if (domain or fsid, fsid) not in self._bootstraps:
                _drop_other_bootstrap(self._directory, domain or fsid, fsid, image.path)
            names = BoundNames([])
            self._domains[domain or fsid] = entry
            entry.images[fsid] = image
            entry.bound[fsid] = names
            return names

    def mount(
        self, image: Image, bound: Bound, target: Path, fsid: str, domain: str
    ) -> None:
        mount_apart(target, fsid, domain)

    def in_use(self, image: Image, fsid: str, domain: str) -> bool:
        with self._lock:
            return (domain or fsid, fsid) in self._bootstraps

    def unbind(self, image: Image, bound: Bound, fsid: str, domain: str) -> None:
        with self._lock:
            entry = self._domains.get(domain or fsid)
            if entry is not None:
                entry.images.pop(fsid, None)
                entry.bound.pop(fsid, None)
                if not entry.images:
                    del self._domains[domain or fsid]

    # -- events ------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        if isinstance(event, Opened):
            self._open(event)
        elif isinstance(event, Closed):
            self._close(event.object)

    def _open(self, event: Opened) -> None:
        domain = event.volume.removeprefix("erofs,")
        name = event.cookie
        size = -errno.ENOENT
        try:
            with self._lock:
                entry = self._domains.get(domain)
                image = entry.images.get(name) if entry else None
                if image is not None:
                    size = self._open_bootstrap(event, domain, image)
                elif entry is not None:
                    size = self._open_blob(event, domain, entry)
        except OSError as e:
            log.error("open of %s in domain %s: %s", name, domain, e)
            size = -(e.errno or errno.EIO)
        if size == -errno.ENOENT:
            log.error("the kernel opens %s in domain %s, which nobody bound", name, domain)
        self._core.copen(event.msg_id, size)
        if size < 0:
            os.close(event.fd)

    def _open_bootstrap(self, event: Opened, domain: str, image: Image) -> int:
        oid = self._objects.next_number()
        pages = PageMap(image.size)
        self._core.add_object(oid, 0, 0, event.fd, image.size, pages.memory, aligned=True)
        self._core.bind_kernel(oid, event.kernel_object, event.fd)
        self._bootstraps[domain, event.cookie] = _Bootstrap(oid, pages)
        self._in_background(self._fill_bootstrap, oid, image)
        return image.size

    def _open_blob(self, event: Opened, domain: str, entry: _Domain) -> int:
        for fsid, image in entry.images.items():
            for blob in image.blobs:
                if blob.info.blob_id != event.cookie:
                    continue
                obj = self._objects.add_kernel(
                    f"{domain}/{event.cookie}#{event.kernel_object}",
                    blob,
                    image.backend,
                    event.kernel_object,
                    event.fd,
                )
                entry.bound[fsid].objects.append(obj)
                self._in_background(self._find_present, obj)
                return blob.chunks.flat_size
        return -errno.ENOENT

    def _close(self, oid: int) -> None:
        with self._lock:
            for key, bootstrap in list(self._bootstraps.items()):
                if bootstrap.oid == oid:
                    self._core.remove_object(oid)
                    del self._bootstraps[key]
                    return
            obj = self._objects.get(oid)
            if obj is None:
                return
            for entry in self._domains.values():
                for bound in entry.bound.values():
                    if obj in bound.objects:
                        bound.objects.remove(obj)
        self._in_background(self._objects.release, obj)

    # -- in the background: the reader of events must never wait ---------------------------------

    def _in_background(self, work: Callable[..., object], *args: Any) -> None:
        threading.Thread(target=work, args=args, daemon=True).start()

    def _fill_bootstrap(self, oid: int, image: Image) -> None:
        """Write it whole: the kernel reads metadata page by page, one request each."""
        try:
            with image.path.open("rb") as f:
                for off in range(0, image.size, _FILL_STEP):
                    data = f.read(_FILL_STEP)
                    _when_backed(partial(self._core.fill_flat, oid, off, data))
        except OSError as e:
            log.error("bootstrap of %s: %s", image.digest, e)
            self._core.fail(oid, 0, image.size, errno.EIO)

    def _find_present(self, obj: CacheObject) -> None:
        extents: list[tuple[int, int]] = []
        at = 0
        try:
            while at < obj.chunks.flat_size:
                start = _when_backed(partial(os.lseek, obj.fill_fd, at, os.SEEK_DATA))
                at = os.lseek(obj.fill_fd, start, os.SEEK_HOLE)
                extents.append((start, at))
        except OSError as e:
            if e.errno != errno.ENXIO:  # no data behind this point
                log.warning("blob %s: what is cached cannot be told: %s", obj.name, e)
        size = obj.chunks.flat_size
        obj.found_on_disk([(off, size if end >= size - size % PAGE else end)
                           for off, end in extents])


def _when_backed(call: Callable[[], _T]) -> _T:
    """The kernel makes the backing file only some time after copen; ENOBUFS until then."""
    deadline = time.monotonic() + _BACKING_FILE_PATIENCE_S
    while True:
        try:
            return call()
        except OSError as e:
            if e.errno != errno.ENOBUFS or time.monotonic() > deadline:
                raise
        time.sleep(_RETRY_S)


def _check_shared(entry: _Domain, image: Image, fsid: str, domain: str) -> None:
    """The kernel knows a blob of a domain by its id alone, and has one file for it."""
    known = {b.info.blob_id: b.identity for i in entry.images.values() for b in i.blobs}
    if fsid in entry.images:
        raise KernelRefused(f"{fsid} is bound already", hint="unbind it, or take another fsid")
    for blob in image.blobs:
        if known.get(blob.info.blob_id, blob.identity) != blob.identity:
            raise KernelRefused(
                f"another image of domain {domain or fsid} describes blob {blob.info.blob_id} "
                "differently",
                hint="bind it in a domain of its own",
            )


def _drop_other_bootstrap(directory: Path, domain: str, fsid: str, bootstrap: Path) -> None:
    """The fsid may have named another image: what the kernel has cached it would not ask for."""
    volume = directory / "cache" / f"Ierofs,{domain}"
    if not volume.is_dir():
        return
    for bucket in volume.iterdir():
        cached = bucket / f"D{fsid}"
        if cached.is_file() and not _is_part_of(cached, bootstrap):
            log.info("%s in domain %s is another image now", fsid, domain)
            cached.unlink(missing_ok=True)


def _is_part_of(sparse: Path, whole: Path) -> bool:
    """Do all data of a sparse file stand in the other at the same place?"""
    with sparse.open("rb") as f, whole.open("rb") as g:
        size, at = whole.stat().st_size, 0
        while True:
            try:
                at = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: no more
                return True
            end = min(os.lseek(f.fileno(), at, os.SEEK_HOLE), size)
            if at >= size:
                return False
            if os.pread(f.fileno(), end - at, at) != os.pread(g.fileno(), end - at, at):
                return False
            at = os.lseek(f.fileno(), at, os.SEEK_HOLE)


def _drop_unsynced(directory: Path) -> None:
    """After a power cut a block may be allocated and yet old: what was cached is not trusted.

    ``USED_IN`` names the boot during which data were written, until they are synced.
    """
    marker, boot = directory / USED_IN, kernel.boot_id()
    if status_of_ours(marker) is not None and marker.read_bytes() != boot.encode():
        log.warning("the machine stopped while cachefiles was in use: cached data are dropped")
        for name in ("cache", "graveyard"):
            shutil.rmtree(directory / name, ignore_errors=True)
    replace_file(marker, boot.encode())
    sync(directory)


def mark_synced(directory: Path) -> None:
    """All cached data are on the disk: they outlive a reboot."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        kernel.syncfs(fd)
    finally:
        os.close(fd)
    (directory / USED_IN).unlink(missing_ok=True)


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
