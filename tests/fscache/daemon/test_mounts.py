"""The mount table over a transport that mounts tmpfs: which mount is ours, and who may begin."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nydus_fscache.daemon.active_mount import ActiveMount, Phase
from nydus_fscache.daemon.mounts import MountTable
from nydus_fscache.errors import DaemonEnding, DaemonError, MountpointError
from nydus_fscache.image.binding import Binding
from nydus_fscache.kernel.mountinfo import find_mount
from nydus_fscache.kernel.syscalls import is_admin

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not is_admin(), reason="NOT ROOT: mounts cannot be tested"
)


def run(*words: str | Path) -> None:
    subprocess.run([str(w) for w in words], check=True, capture_output=True)


class Tmpfs:
    """Both halves of a transport and the registry of it; ``first``: done just before a mount."""

    def __init__(self) -> None:
        self.first: Callable[[], object] = lambda: None

    def get(self, name: str) -> Tmpfs:
        return self

    def mount(self, bound: Any, target: Path) -> None:
        self.first()
        run("mount", "-t", "tmpfs", "ours", target)

    def in_use(self, bound: Any, mounted: Any) -> bool:
        return False


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    run("mount", "-t", "tmpfs", "place", tmp_path)
    run("mount", "--make-private", tmp_path)
    try:
        yield tmp_path
    finally:
        run("umount", "-R", tmp_path)


@pytest.fixture
def transport() -> Tmpfs:
    return Tmpfs()


@pytest.fixture
def table(place: Path, transport: Tmpfs) -> MountTable:
    return MountTable(transport, place / "root")  # type: ignore[arg-type]


def active_at(point: Path) -> ActiveMount:
    point.mkdir(exist_ok=True)
    binding = Binding("0" * 64, {}, "tmpfs", {}, str(point), "image")
    nothing: Any = SimpleNamespace(objects=[])
    return ActiveMount(binding, nothing, nothing)


def mounted(table: MountTable, point: Path) -> ActiveMount:
    active = active_at(point)
    with table.work(), table.claim(point):
        table.add(active)
        table.mount(active)
    return active


def test_a_mount_may_get_the_number_of_one_that_went_meanwhile(
    table: MountTable, transport: Tmpfs, place: Path
) -> None:
    (place / "other").mkdir()
    run("mount", "-t", "tmpfs", "other", place / "other")
    transport.first = lambda: run("umount", place / "other")
    active = mounted(table, place / "m")
    assert active.phase is Phase.MOUNTED
    assert table.mounted_at(str(place / "m")) is active
    table.umount(active)
    assert find_mount(place / "m") is None


def test_one_claim_for_a_place(table: MountTable, place: Path) -> None:
    (place / "m").mkdir()
    with (
        table.claim(place / "m"),
        pytest.raises(MountpointError, match="another mount has begun"),
        table.claim(place / "m"),
    ):
        pass
    with table.claim(place / "m"):
        pass


def test_an_end_waits_for_work_and_refuses_more(table: MountTable) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def work() -> None:
        with table.work():
            begun.set()
            may_end.wait(10)

    worker = threading.Thread(target=work)
    worker.start()
    assert begun.wait(10)
    assert not table.end_if_idle()
    table.refuse_work(stopping=True)
    with pytest.raises(DaemonEnding), table.work():
        pass
    with pytest.raises(DaemonError, match="stopped meanwhile"):
        table.check_going_on()
    waiter = threading.Thread(target=table.wait_for_work)
    waiter.start()
    waiter.join(0.1)
    assert waiter.is_alive()
    may_end.set()
    waiter.join(10)
    worker.join(10)
    assert not waiter.is_alive()
    table.allow_work()
    with table.work():
        pass
    assert table.end_if_idle()


def test_a_lazily_unmounted_one_is_taken_when_it_is_unused(table: MountTable, place: Path) -> None:
    active = mounted(table, place / "m")
    run("umount", place / "m")
    assert table.take_unused() == []  # not looked yet
    table.refresh()
    assert active.phase is Phase.SUPERBLOCK
    assert table.take_unused() == [active]
    assert table.all() == []
