"""What is on record of the mounts of a node: each change, whatever fails, and no more than that."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nydus_fscache.daemon.active_mount import ActiveMount
from nydus_fscache.daemon.mounts import MountTable
from nydus_fscache.daemon.record import Record
from nydus_fscache.errors import CacheDirError
from nydus_fscache.handover import state, state_file
from nydus_fscache.handover.retry_queue import RetryQueue
from nydus_fscache.handover.state import State
from nydus_fscache.image.binding import Binding

MANY = 100


class Place:
    """Of a root, which may be lost."""

    def __init__(self) -> None:
        self.is_lost = False

    def is_in_place(self) -> bool:
        return not self.is_lost

    def check_place(self) -> None:
        if self.is_lost:
            raise CacheDirError("moved")


class Node:
    """A record of mounts that are only written down."""

    def __init__(self, root: Path) -> None:
        self.path = root / "state.json"
        self.numbers: dict[str, int] = {}
        engine: Any = SimpleNamespace(
            state=State(), state_path=self.path, quota=SimpleNamespace(limit=0),
            objects=SimpleNamespace(numbers=lambda: dict(self.numbers)), store=Place(),
        )  # fmt: skip
        self.engine = engine
        nothing: Any = None
        self.mounts = MountTable(nothing, root)
        self.record = Record(engine, self.mounts, RetryQueue())
        self.record.save()
        self.made = 0

    def enter(self) -> ActiveMount:
        self.made += 1
        name = f"b{self.made}"
        obj = SimpleNamespace(name=name, oid=self.made)
        backend = {"type": "localfs", "localfs": {"dir": "/somewhere/or/other"}}
        binding = Binding("0" * 64, backend, "fanotify", {}, f"/m/{self.made}", "image")
        bound: Any = SimpleNamespace(objects=[obj])
        active = ActiveMount(binding, bound, bound)
        self.mounts.add(active)
        self.numbers[name] = self.made
        self.record.enter(active)
        return active

    def forget(self, active: ActiveMount) -> None:
        self.mounts.remove(active)
        del self.numbers[f"b{active.bound.objects[0].oid}"]
        self.record.forget([active.binding])

    def check(self) -> None:
        found = state.load(self.path)
        by_place = lambda bindings: sorted(bindings, key=lambda b: b.mountpoint)  # noqa: E731
        assert by_place(found.bindings) == by_place(self.record.bindings())
        assert found.numbers.items() >= self.numbers.items()
        assert found.cache_limit == self.engine.quota.limit


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_many_changes_in_any_order(node: Node) -> None:
    """Entered, moved, named, unmounted, in a small state, a large one, and a small one again."""
    dice = random.Random(5)
    active: list[ActiveMount] = []
    seen = set()
    for turn in range(500):
        grows = dice.random() < (0.75 if turn < 250 else 0.3)
        if grows or not active:
            active.append(node.enter())
        elif dice.random() < 0.7:
            node.forget(active.pop(dice.randrange(len(active))))
        else:
            one = dice.choice(active)
            one.binding.mount = {"id": turn}
            if dice.random() < 0.5:
                node.record.update(one)
            else:
                one.binding.mountpoint += "x"
                node.engine.quota.limit = turn
                node.record.save()
        seen.add(state_file.log_of(node.path).exists())
        if turn % 7 == 0:
            node.check()
    assert seen == {True, False}
    node.record.close()
    node.check()
    assert json.loads(node.path.read_bytes())["version"] == state.VERSION


def test_what_is_said_later_is_written_later(node: Node) -> None:
    active = [node.enter() for _ in range(MANY)]
    for one in active:
        one.binding.mount = {"id": 1}
        node.record.update_soon(one)
    node.forget(active[0])  # and is not written again
    assert not any(b.mount for b in state.load(node.path).bindings)
    node.record.catch_up()
    assert all(b.mount for b in state.load(node.path).bindings)
    node.check()


def test_what_left_meanwhile_is_not_written_again(node: Node) -> None:
    one, *_ = [node.enter() for _ in range(MANY)]
    node.forget(one)
    node.record.update(one)
    node.check()


def test_a_mount_among_many_writes_a_line(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(MANY):
        node.enter()
    node.record.write_whole()
    node.record.write_whole(on=False)
    node.enter()  # with a new log
    written = 0
    real = os.write

    def count(fd: int, data: bytes) -> int:
        nonlocal written
        written += len(data)
        return real(fd, data)

    monkeypatch.setattr(os, "write", count)
    monkeypatch.setattr("nydus_fscache.daemon.record.Record.bindings", None)
    before = node.path.stat().st_ino
    for _ in range(20):
        node.record.save_soon()  # which compares all of them, later
        node.forget(node.enter())
    assert node.path.stat().st_ino == before
    assert 20 * 200 < written < 20 * 1000


@pytest.mark.parametrize("count", [5, MANY])
def test_a_disk_that_is_full_takes_what_is_set_aside(
    node: Node, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    active = [node.enter() for _ in range(count)]
    node.record.catch_up()
    reserve = node.path.with_name("state.reserve")
    assert reserve.exists()
    real = os.fsync, os.fdatasync

    def full(number: int, fd: int) -> None:
        if reserve.exists():
            raise OSError(errno.ENOSPC, "full")
        real[number](fd)

    monkeypatch.setattr(os, "fsync", lambda fd: full(0, fd))
    monkeypatch.setattr(os, "fdatasync", lambda fd: full(1, fd))
    active[0].binding.mountpoint = "/moved"
    node.record.save()
    assert not reserve.exists()
    node.check()


@pytest.mark.parametrize("count", [5, MANY])
@pytest.mark.parametrize("is_stuck", [False, True])
def test_what_cannot_be_written_is_written_later(
    node: Node, monkeypatch: pytest.MonkeyPatch, count: int, *, is_stuck: bool
) -> None:
    """``is_stuck``: the part of a line that was written cannot be taken back either."""
    active = [node.enter() for _ in range(count)]

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as broken:
        for name in ("fsync", "fdatasync", *(["ftruncate"] if is_stuck else [])):
            broken.setattr(os, name, fail)
        with pytest.raises(CacheDirError):
            node.enter()
        node.mounts.remove(node.mounts.all()[-1])  # nothing is mounted
        del node.numbers[f"b{node.made}"]
        active[0].binding.mountpoint = "/moved"
        node.record.update(active[0])
        node.forget(active[1])
    with contextlib.suppress(CacheDirError):
        node.record.catch_up()
    node.check()


@pytest.mark.parametrize("count", [5, MANY])
def test_nothing_is_written_where_a_root_was(node: Node, count: int) -> None:
    """By its descriptor, or by its name; when it is back, all is on record."""
    active = [node.enter() for _ in range(count)]
    log = state_file.log_of(node.path)

    def there() -> list[bytes]:
        return [p.read_bytes() for p in (node.path, log) if p.exists()]

    before = there()
    node.engine.store.is_lost = True
    with pytest.raises(CacheDirError):
        node.enter()
    node.forget(active[0])
    assert there() == before
    node.engine.store.is_lost = False
    node.record.catch_up()
    node.check()


def test_an_older_version_is_given_all_of_it(node: Node) -> None:
    active = [node.enter() for _ in range(MANY)]
    node.forget(active[0])
    assert json.loads(node.path.read_bytes())["version"] == state.LOGGED_VERSION
    node.record.write_whole()
    for change in (node.enter, lambda: node.forget(active[1])):
        found = json.loads(node.path.read_bytes())
        assert found["version"] == state.VERSION
        assert len(found["bindings"]) == len(node.mounts.all())
        assert not state_file.log_of(node.path).exists()
        change()
    node.check()
    node.record.write_whole(on=False)
    node.enter()
    node.check()
    assert json.loads(node.path.read_bytes())["version"] == state.LOGGED_VERSION


def test_a_log_is_written_anew_when_it_is_long(node: Node) -> None:
    active = [node.enter() for _ in range(MANY)]
    longest = 0
    for turn in range(3 * MANY):
        active[turn % MANY].binding.mount = {"id": turn}
        node.record.update(active[turn % MANY])
        if (log := state_file.log_of(node.path)).exists():
            longest = max(longest, log.stat().st_size)
    node.check()
    assert longest < 2 * node.path.stat().st_size
