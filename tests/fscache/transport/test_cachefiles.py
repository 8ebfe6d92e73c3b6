"""cachefiles messages that a healthy kernel hardly ever sends, from the other end of a socket.

The kernel's end is played here, message for message (reference fscache-vm 3); what the
virtual machine can show is shown there (vm-tests).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nydus_fscache.backend.make import make_backend
from nydus_fscache.cache.presence import PageMap
from nydus_fscache.cache.store import Store
from nydus_fscache.core.core import Core
from nydus_fscache.core.events import Inherited, Opened, ReadMiss
from nydus_fscache.errors import KernelRefused, UsageError
from nydus_fscache.fetch.objects import Objects
from nydus_fscache.fetch.queue import Fetcher
from nydus_fscache.handover.link import Handover
from nydus_fscache.handover.orphans import Orphans
from nydus_fscache.image.binding import Address
from nydus_fscache.image.image import Image, load_image
from nydus_fscache.transport.cachefiles import kernel_cache
from nydus_fscache.transport.cachefiles.transport import CachefilesTransport

OPEN, CLOSE, READ = 0, 1, 2
PATIENCE_S = 20
SLOTS = 64


def names(fsid: str, domain: str = "dom") -> Address:
    return {"fsid": fsid, "domain": domain}


def message(number: int, kind: int, kernel_object: int, body: bytes = b"") -> bytes:
    return struct.pack("<4I", number, kind, 16 + len(body), kernel_object) + body


class Kernel:
    """The far end of the device."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.end.settimeout(PATIENCE_S)
        theirs.setblocking(False)
        self.device = theirs.detach()
        self.files: dict[int, Path] = {}

    def open(self, number: int, kernel_object: int, domain: str, cookie: str) -> None:
        path = self.files[kernel_object] = self.base / f"object{kernel_object}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT)  # as the kernel: it is the receiver's
        volume = f"erofs,{domain}".encode() + b"\0"
        keys = volume + cookie.encode()
        sizes = struct.pack("<4I", len(volume), len(cookie), fd, 0)
        self.end.send(message(number, OPEN, kernel_object, sizes + keys))

    def read(self, number: int, kernel_object: int, off: int, length: int) -> None:
        self.end.send(message(number, READ, kernel_object, struct.pack("<2Q", off, length)))

    def answer(self) -> str:
        return self.end.recv(1024).decode()


class Service:
    """What the daemon is made of, without mounts."""

    def __init__(self, base: Path, kernel: Kernel) -> None:
        keeper, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        socket.send_fds(keeper, [b"have cachefiles"], [kernel.device])
        keeper.send(b"end")
        os.close(kernel.device)
        self.keeper = keeper
        self.handover = handover = Handover(ours.detach())
        self.journal = mmap.mmap(-1, Core.journal_size(SLOTS))
        Core.format_journal(self.journal, SLOTS)
        self.core = Core(self.journal)
        self.store = Store(base / "root")
        self.fetcher = Fetcher(self.core.trim)
        orphans = Orphans(self.core, handover)
        self.objects = Objects(self.store, self.core, self.fetcher, handover, orphans, {})
        cache = kernel_cache.KernelCache(self.store.cachefiles)
        self.transport = CachefilesTransport(self.core, self.objects, handover, cache)
        self.core.start()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._dispatch)
        self._thread.start()

    def _dispatch(self) -> None:
        while not self._end.is_set():
            for event in self.core.next(timeout_ms=50):
                obj = self.objects.get(event.object) if isinstance(event, ReadMiss) else None
                if obj is not None and isinstance(event, ReadMiss):
                    obj.demand(event.off, event.len)
                else:
                    self.transport.handle(event)

    def close(self) -> None:
        self._end.set()
        self._thread.join(PATIENCE_S)
        self.core.stop()
        self.fetcher.stop()
        self.store.close()
        self.keeper.close()
        self.handover._socket.close()


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


@pytest.fixture
def service(tmp_path: Path, kernel: Kernel) -> Iterator[Service]:
    service = Service(tmp_path, kernel)
    try:
        yield service
    finally:
        kernel.end.close()
        service.close()


@pytest.fixture
def image(golden: Path, service: Service) -> Image:
    source = golden / "images" / "one-lz4"
    config = {"type": "localfs", "localfs": {"dir": str(source / "blobs")}}
    data = (source / "image.boot").read_bytes()
    digest = service.store.bootstraps.keep(len(data), lambda: [data])
    path = service.store.bootstraps.path(digest)
    meta = service.store.images / "meta"
    return load_image(path, digest, make_backend(config), config, "cachefiles", meta)


def wait_for(what: str, condition: object) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def descriptors_of(path: Path) -> int:
    """How many descriptors of this process are open on a file."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += entry.readlink() == path
    return count


def test_open_read_close(kernel: Kernel, service: Service, image: Image) -> None:
    blob = image.blobs[0]
    service.transport.bind(image, names("boot"))
    kernel.open(0, 1, "dom", "boot")
    assert kernel.answer() == f"copen 0,{image.size}"
    kernel.open(1, 2, "dom", blob.info.blob_id)
    assert kernel.answer() == f"copen 1,{blob.chunks.flat_size}"
    wait_for("bootstrap", lambda: kernel.files[1].read_bytes() == image.path.read_bytes())
    kernel.read(2, 2, 0, 4096)
    wait_for("data", lambda: service.core.stats().events == 3 and kernel.files[2].stat().st_size)
    wait_for("an answer", lambda: service.core.stats().pending == 0)
    for number in (1, 2):
        kernel.end.send(message(9, CLOSE, number))
        wait_for("a close", lambda number=number: descriptors_of(kernel.files[number]) == 0)
    wait_for("the end of the object", lambda: service.objects.all() == [])


def test_read_of_what_is_not_open_is_asked_for_again(
    kernel: Kernel, service: Service, image: Image
) -> None:
    """It cannot be answered without the object's descriptor; sent again, it comes after an OPEN."""
    service.transport.bind(image, names("boot"))
    for number in range(3):
        kernel.read(number, 77, 0, 4096)
    assert kernel.answer() == "restore"
    kernel.open(4, 78, "dom", "boot")
    assert kernel.answer() == f"copen 4,{image.size}", "one restore for all of them"
    kernel.end.send(message(5, READ, 78, b"short"))
    kernel.read(6, 78, 0, 4096)
    wait_for("answers", lambda: service.core.stats().events == 6)
    wait_for("answers", lambda: service.core.stats().pending == 0)


@pytest.mark.parametrize("cookie", ["boot", "blob", "unknown"])
def test_an_answer_that_is_not_taken_leaves_nothing(
    kernel: Kernel, service: Service, image: Image, cookie: str
) -> None:
    """Who waited for the OPEN was killed: the kernel refuses copen, and the object is not open."""
    service.transport.bind(image, names("boot"))
    name = image.blobs[0].info.blob_id if cookie == "blob" else cookie
    kernel.open(0, 1, "dom", name)
    kernel.end.close()  # the answer finds nobody
    wait_for("the descriptor is closed", lambda: descriptors_of(kernel.files[1]) == 0)
    assert service.objects.all() == []
    service.transport.unbind(service.transport.bind(image, names("x", "other")))


def test_a_bootstrap_that_cannot_be_written_is_tried_again(
    kernel: Kernel, service: Service, image: Image
) -> None:
    service.transport.bind(image, names("boot"))
    moved = image.path.with_suffix(".moved")
    image.path.rename(moved)
    kernel.open(0, 1, "dom", "boot")
    assert kernel.answer() == f"copen 0,{image.size}"
    kernel.read(1, 1, 0, 4096)
    wait_for("an error", lambda: service.core.stats().denied == 1)
    # a try that had begun when the reader came may be under way still
    wait_for("no try", lambda: not [t for t in threading.enumerate() if "_fill" in t.name])
    moved.rename(image.path)
    kernel.read(2, 1, 0, 4096)
    wait_for("data", lambda: kernel.files[1].read_bytes() == image.path.read_bytes())
    wait_for("answers", lambda: service.core.stats().pending == 0)
    assert service.core.stats().denied == 1


def test_what_is_not_answered_is_on_record(tmp_path: Path, kernel: Kernel) -> None:
    """For the next core: an OPEN until copen, an object until it is forgotten, READ and CLOSE."""
    memory = mmap.mmap(-1, Core.journal_size(SLOTS))
    Core.format_journal(memory, SLOTS)
    core = Core(memory)
    core.attach_cachefiles(kernel.device)
    core.start()
    kernel.open(3, 1, "dom", "boot")
    kernel.open(4, 2, "dom", "blob")
    opened: list[Opened] = []
    while len(opened) < 2:
        opened += [e for e in core.next(timeout_ms=1000 * PATIENCE_S) if isinstance(e, Opened)]
    first, second = opened
    pages = PageMap(8192)
    core.add_object(9, 0, 0, second.fd, 8192, pages.memory, aligned=True)
    core.bind_kernel(9, 2, second.fd)
    core.copen(4, 8192)
    kernel.read(5, 2, 4096, 4096)
    kernel.end.send(message(6, CLOSE, 2))
    wait_for("all", lambda: core.stats().events == 4)
    core.stop()

    successor = Core(memory)
    assert [(e.msg_id, e.kernel_object) for e in successor.inherited(Inherited.ASKED)] == [(3, 1)]
    assert [e.kernel_object for e in successor.inherited(Inherited.CLOSED)] == [2]
    found = successor.inherited(Inherited.OBJECTS)
    objects = [(e.kernel_object, e.volume, e.cookie) for e in found]
    assert objects == [(1, "erofs,dom", "boot"), (2, "erofs,dom", "blob")]
    successor.add_object(9, 0, 0, second.fd, 8192, pages.memory, aligned=True)
    successor.bind_kernel(9, 2, second.fd)
    assert successor.settle(all_served=True) == 1
    (missed,) = successor.next(timeout_ms=0)
    assert missed == ReadMiss(9, 4096, 4096, 0)
    for kernel_object in (1, 2):
        successor.forget_kernel(kernel_object)
    assert successor.inherited(Inherited.OBJECTS) == successor.inherited(Inherited.CLOSED) == []
    os.close(first.fd)
    os.close(second.fd)
    os.close(kernel.device)
    kernel.end.close()


def test_names(service: Service, image: Image) -> None:
    for fsid, domain in (("a/b", ""), ("..", "../.."), ("", ""), ("a,b", ""), ("x" * 129, "")):
        with pytest.raises(UsageError):
            service.transport.bind(image, names(fsid, domain))
    service.transport.bind(image, names("one"))
    with pytest.raises(KernelRefused, match="name of a bootstrap"):
        service.transport.bind(image, names(image.blobs[0].info.blob_id))
    with pytest.raises(KernelRefused, match="already"):
        service.transport.bind(image, names("one"))


def test_what_the_kernel_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The listing of Linux 6.1; what another description had filled is refused while held."""
    (tmp_path / "volumes").write_text(
        "VOLUME   REF   nCOOK ACC FL CACHE           KEY\n"
        "======== ===== ===== === == =============== ================\n"
        "00000001     3     2   1 08 nydus-fscache   erofs,dom\n"
        "00000002     3     2   1 08 nydus-fscache   erofs,dom2\n"
    )
    (tmp_path / "cookies").write_text(
        "COOKIE   VOLUME   REF ACT ACC S FL DEF             \n"
        "======== ======== === === === = == ================\n"
        f"00000001 00000001   1   1   1 A 4208 {b'blob'.hex()}, 00000000\n"
        f"00000002 00000001   1   1   1 L 4208 {b'boot'.hex()}\n"
        f"00000003 00000002   1   1   1 A 4208 {b'other'.hex()}\n"
    )
    monkeypatch.setattr(kernel_cache, "PROC", tmp_path)
    assert kernel_cache.open_cookies("dom") == {"blob": True, "boot": False}
    cache = kernel_cache.KernelCache(tmp_path)
    boot = tmp_path / "boot"
    boot.write_bytes(b"x" * 4096)
    with pytest.raises(KernelRefused, match="still holds blob blob"):
        cache.prepare("dom", "fs", boot, {"blob": "1"})
    cache.prepare("dom", "fs", boot, {"free": "1"})
    bucket = tmp_path / "cache" / "Ierofs,dom" / "@4a"
    bucket.mkdir(parents=True)
    (bucket / "Dfree").write_bytes(b"data")
    cache.prepare("dom", "fs2", boot, {"free": "1"})
    assert (bucket / "Dfree").exists(), "the same blob again"
    cache.prepare("dom", "fs3", boot, {"free": "2"})
    assert not (bucket / "Dfree").exists()
    (bucket / "Dfree").write_bytes(b"data")
    (tmp_path / "identities" / "dom.json").write_text("[")
    cache.prepare("dom", "fs4", boot, {"free": "2"})
    assert not (bucket / "Dfree").exists(), "nobody knows what it is"
