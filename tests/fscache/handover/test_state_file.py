"""The state on disk: whatever a kill, a full disk or a power cut leaves is a state that was."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nydus_fscache.errors import CacheDirError
from nydus_fscache.handover import state, state_file
from nydus_fscache.handover.state import LOGGED_VERSION, State
from nydus_fscache.handover.state_file import StateFile, log_of
from nydus_fscache.image.binding import Binding

COUNT = 200  # bindings: more than a small state has


def binding(number: int) -> Binding:
    return Binding(f"{number:064}", {"type": "localfs"}, "fanotify", {}, f"/m/{number}", "image")


def lines(count: int = COUNT) -> list[str]:
    return [state.line_of(binding(n)) for n in range(count)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


@pytest.fixture
def file(path: Path) -> StateFile:
    """With a log."""
    made = StateFile(path)
    made.replace(lines(), State(numbers={"a": 1}, cache_limit=5).rest(), LOGGED_VERSION)
    assert made.is_logged
    return made


def change(**parts: Any) -> str:
    return json.dumps(parts)


def one(number: int, **fields: str) -> list[Any]:
    return [number, {**json.loads(state.line_of(binding(number))), **fields}]


def test_changes_are_read_with_what_they_change(path: Path, file: StateFile) -> None:
    file.append(change(set=[one(COUNT)], gone=[3, 4]))
    file.append(change(set=[one(0, mountpoint="/moved"), one(COUNT + 1)], numbers={"b": 2}))
    file.append(change(gone=[COUNT], cache_limit=9))
    found = state.load(path)
    assert [b.mountpoint for b in found.bindings] == [
        "/moved", *(f"/m/{n}" for n in (*range(1, 3), *range(5, COUNT), COUNT + 1))
    ]  # fmt: skip
    assert (found.numbers, found.cache_limit) == ({"a": 1, "b": 2}, 9)


def test_a_change_costs_what_it_is(path: Path, file: StateFile) -> None:
    whole = path.stat()
    for number in range(20):
        file.append(change(set=[one(COUNT + number)]))
    assert path.stat().st_mtime_ns == whole.st_mtime_ns
    assert log_of(path).stat().st_size < whole.st_size / 4


def test_a_small_state_is_whole_as_older_versions_read_it(path: Path) -> None:
    made = StateFile(path)
    made.replace(lines(3), State().rest(), LOGGED_VERSION)
    assert not made.is_logged
    assert json.loads(path.read_bytes())["version"] == state.VERSION


def test_an_older_version_does_not_take_half_of_it(path: Path, file: StateFile) -> None:
    """A log that it knows nothing of."""
    assert json.loads(path.read_bytes())["version"] not in (1, state.VERSION)
    file.append(change(gone=[0]))
    state.load(path).save(path)
    found = json.loads(path.read_bytes())
    assert (found["version"], len(found["bindings"])) == (state.VERSION, COUNT - 1)
    assert state.load(path).bindings == [binding(n) for n in range(1, COUNT)]


def test_a_log_of_an_earlier_state_means_nothing(path: Path, file: StateFile) -> None:
    """Killed between the two files."""
    file.append(change(gone=[0, 1]))
    old = log_of(path).read_bytes()
    file.replace(lines(), State().rest(), LOGGED_VERSION)
    assert len(state.load(path).bindings) == COUNT
    log_of(path).write_bytes(old)
    assert len(state.load(path).bindings) == COUNT
    log_of(path).write_bytes(b"")
    assert len(state.load(path).bindings) == COUNT


def test_a_cut_at_any_byte_is_the_state_before_or_behind(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_file, "SMALL", 1)
    file = StateFile(path)
    file.replace(lines(3), State().rest(), LOGGED_VERSION)
    states = [state.load(path)]
    ends = []
    for number in (1, 2):
        file.append(change(set=[one(7 + number)], gone=[number]))
        states.append(state.load(path))
        ends.append(log_of(path).stat().st_size)
    data = log_of(path).read_bytes()
    for size in range(len(data) + 1):
        known = sum(size >= end for end in ends)
        for tail in (b"", bytes(37)):  # zeros: what a disk without power may show
            log_of(path).write_bytes(data[:size] + tail)
            assert state.load(path) == states[known], (size, tail)


def test_damage_before_other_changes_is_an_error(path: Path, file: StateFile) -> None:
    for number in range(3):
        file.append(change(gone=[number]))
    good = log_of(path).read_bytes().split(b"\n")
    for line in range(3):
        bad = good.copy()
        bad[line] = b"{" + bad[line][2:]
        log_of(path).write_bytes(b"\n".join(bad))
        with pytest.raises(CacheDirError, match="damaged"):
            state.load(path)


@pytest.mark.parametrize(
    "line",
    [b"7", b"[]", b'{"set": 1}', b'{"set": [1]}', b'{"gone": [[]]}', b'{"numbers": 3}',
     b'{"set": [[0, 1]]}', b'{"cache_limit": "x"}', b'{"set": [[0, {}]]}', b'{"gone": {"a": 1}}'],
)  # fmt: skip
def test_nonsense_is_an_error_or_nothing(path: Path, file: StateFile, line: bytes) -> None:
    file.append(change(gone=[0]))
    with log_of(path).open("ab") as f:
        f.write(line + b"\n")
    with contextlib.suppress(CacheDirError):
        assert len(state.load(path).bindings) == COUNT - 1


class Killed(BaseException):
    pass


STEPS = ("write", "fdatasync", "fsync", "rename", "replace", "open", "unlink", "ftruncate")


def test_killed_before_each_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a replacement, of a log's beginning and of a change: one of two states is found, and
    a successor goes on from there."""
    real = {name: getattr(os, name) for name in STEPS}
    left = -1

    def step(name: str) -> Callable[..., Any]:
        def do(*args: Any, **more: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            return real[name](*args, **more)

        return do

    for name in STEPS:
        monkeypatch.setattr(os, name, step(name))
    kills = 0
    for kill_at in range(1, 60):
        left = -1
        made = StateFile(path)
        made.replace(lines(), State().rest(), LOGGED_VERSION)
        made.append(change(gone=[0]))
        made.append(change(gone=[1]))
        before, behind = COUNT - 2, COUNT - 3
        left = kill_at
        try:
            made.append(change(gone=[2]))
            before = behind
            made.replace(lines(COUNT - 3), State().rest(), LOGGED_VERSION)
            made.append(change(gone=[0]))
            before = behind = COUNT - 4
        except Killed:
            kills += 1
            left = -1
            found = len(state.load(path).bindings)
            assert found in (before, behind, COUNT - 4), kill_at
        else:
            left = -1
            assert len(state.load(path).bindings) == COUNT - 4
            break
    assert kills > 5


def test_a_disk_that_fills_in_the_middle_of_a_change(
    path: Path, file: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.append(change(gone=[0]))
    real = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda fd, data: real(fd, data[:9]))
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is looked at
            file.append(change(gone=[1]))
    assert caught.value.errno == errno.ENOSPC
    assert file.is_logged
    file.append(change(gone=[2]))
    assert len(state.load(path).bindings) == COUNT - 2


def test_a_change_that_cannot_be_taken_back_ends_the_log(
    path: Path, file: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the next one would be lost with it."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "no")

    file.append(change(gone=[0]))
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fail)
        broken.setattr(os, "ftruncate", fail)
        with pytest.raises(OSError, match="no"):
            file.append(change(gone=[1]))
    assert not file.is_logged


def test_a_log_that_cannot_be_kept_open(
    path: Path, file: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first line is there, and would go with the next beginning."""

    def fail(name: object, *_: object) -> int:
        if name == log_of(path):
            raise OSError(errno.EMFILE, "too many")
        return real(name, *_)  # type: ignore[arg-type]

    real = os.open
    with monkeypatch.context() as broken:
        broken.setattr(os, "open", fail)
        with pytest.raises(OSError, match="too many"):
            file.append(change(gone=[0]))
    assert not file.is_logged


def test_a_long_log_says_so(file: StateFile) -> None:
    for number in range(COUNT * 3):
        if file.is_long:
            break
        file.append(change(set=[one(number)]))
    assert file.is_long
    file.replace(lines(), State().rest(), LOGGED_VERSION)
    assert not file.is_long


def test_nothing_is_left_of_a_log_when_the_state_is_small(path: Path, file: StateFile) -> None:
    file.append(change(gone=[0]))
    file.replace([], State().rest(), LOGGED_VERSION)
    assert os.listdir(path.parent) == [path.name]
    assert state_file.read(path, LOGGED_VERSION)["bindings"] == []
