"""Pages of a FUSE file go when the image is complete or memory is short, and only those."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nydus_fscache.cache.presence import PAGE, PageMap
from nydus_fscache.core.core import Core
from nydus_fscache.errors import FscacheError
from nydus_fscache.kernel.mount import create_fuse
from nydus_fscache.kernel.pressure import memory_is_short
from nydus_fscache.transport.fuse import second_copies
from nydus_fscache.transport.fuse.connection import node_of, open_device
from nydus_fscache.transport.fuse.second_copies import Files, SecondCopies, drop

PAGES, OID, NUMBER = 64, 7, 1


@dataclass
class Served:
    """A file of the kernel's FUSE whose object is half there."""

    core: Core
    device: int
    file: int

    def files(self) -> Files:
        return Files(NUMBER, self.device, [node_of(OID)], complete=True)

    def resident(self) -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        size, seen = PAGES * PAGE, ctypes.create_string_buffer(PAGES)
        at = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, self.file, 0)
        assert libc.mincore(at, size, seen) == 0
        libc.munmap(at, size)
        return sum(byte & 1 for byte in seen.raw)


@pytest.fixture
def served() -> Iterator[Served]:
    memory = mmap.mmap(-1, Core.journal_size(16))
    Core.format_journal(memory, 16)
    core, pages = Core(memory), PageMap(PAGES * PAGE)
    pages.set(0, PAGES // 2)
    data = os.memfd_create("data")
    os.write(data, os.urandom(PAGES * PAGE))
    core.add_object(OID, 0, 0, data, PAGES * PAGE, pages.memory)
    core.start()
    opened = [data]
    try:
        try:
            device = open_device()
            opened.append(device)
            root = create_fuse(device)
        except FscacheError as e:
            pytest.skip(f"NO FUSE: {e}")
        opened.append(root)
        core.attach_fuse(NUMBER, device)
        file = os.open(str(OID), os.O_RDONLY, dir_fd=root)
        opened.append(file)
        # it asks for no more than is read: what is read ahead would wait
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        yield Served(core, device, file)
    finally:
        for fd in reversed(opened):
            os.close(fd)
        core.close()
        pages.close()
        memory.close()


def test_pages_go_and_come_back(served: Served) -> None:
    half = PAGES // 2 * PAGE
    before = os.pread(served.file, half, 0)
    assert served.resident() >= PAGES // 2
    process = drop([served.files()])
    process.wait("dropping")
    assert served.resident() == 0
    asked = served.core.stats().events
    assert os.pread(served.file, half, 0) == before
    assert served.core.stats().events > asked


def test_a_page_that_is_being_read_is_waited_for_by_nobody_else(served: Served) -> None:
    """The process that waits for it is not ours, which has to answer."""
    last = PAGES - 1
    reader = threading.Thread(target=os.pread, args=(served.file, PAGE, last * PAGE))
    reader.start()
    while not served.core.stats().pending:
        time.sleep(0.01)
    copies = SecondCopies(lambda: False)
    copies.look([served.files()], 0, 0.0)
    time.sleep(0.5)
    copies.look([served.files()], 1, second_copies.AGAIN_S + 1)  # waits for nothing either
    served.core.filled(OID, last * PAGE, PAGE)
    reader.join(10)
    assert not reader.is_alive()
    assert copies._process is not None
    copies._process.wait("dropping")  # the reader may have had the page in its hands just then
    drop([served.files()]).wait("dropping")
    assert served.resident() == 0


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The numbers of each process, which ends at once."""
    seen: list[list[int]] = []

    def note(images: Any) -> Any:
        seen.append([files.number for files in images])
        ended = SimpleNamespace(poll=lambda: 0, communicate=lambda: (b"", None))
        return SimpleNamespace(process=ended)

    monkeypatch.setattr(second_copies, "drop", note)
    return seen


def image(number: int, *, complete: bool) -> Files:
    return Files(number, -1, [2], complete)


def test_of_complete_images_once_and_again_when_they_are_read(dropped: list[list[int]]) -> None:
    copies = SecondCopies(lambda: False)
    whole, part = image(1, complete=True), image(5, complete=False)
    copies.look([whole, part], 10, 0.0)
    for now in (1.0, 2.0):
        copies.look([whole, part], 20, now)
    assert dropped == [[1]]
    copies.look([whole, part], 20, second_copies.AGAIN_S)
    assert dropped == [[1], [1]], "it was read since"
    copies.look([whole, part], 20, 3 * second_copies.AGAIN_S)
    assert dropped == [[1], [1]], "nobody has read since"
    copies.look([part], 30, 4 * second_copies.AGAIN_S)
    copies.look([part, whole], 30, 4 * second_copies.AGAIN_S + 1)
    assert dropped[2:] == [[1]], "the number's next image"


def test_of_all_when_memory_is_short(dropped: list[list[int]]) -> None:
    short = True
    copies = SecondCopies(lambda: short)
    images = [image(1, complete=True), image(5, complete=False)]
    copies.look(images, 10, 0.0)
    assert dropped == [[1, 5]]
    copies.look(images, 11, 1.0)
    assert dropped == [[1, 5]], "not every second"
    copies.look(images, 12, second_copies.SHORT_PAUSE_S)
    assert dropped == [[1, 5]] * 2
    short = False
    copies.look(images, 13, 5 * second_copies.SHORT_PAUSE_S)
    assert dropped == [[1, 5]] * 2


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=9.00", False),
        ("some avg10=12.50 avg60=0.00 avg300=0.00 total=0\n", True),
        ("", False),
        ("some avg10=much", False),
    ],
)
def test_pressure(tmp_path: Path, text: str, short: bool) -> None:
    path = tmp_path / "memory"
    assert not memory_is_short(path), "a kernel that does not tell"
    path.write_text(text)
    assert memory_is_short(path) == short
