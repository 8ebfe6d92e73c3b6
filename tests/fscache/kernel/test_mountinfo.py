"""Which mount is which: real mounts that are covered, moved, replaced and unmounted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nydus_fscache.kernel import mountinfo, syscalls
from nydus_fscache.kernel.mountinfo import MountId, look_up, mount_id_at

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not syscalls.is_admin(), reason="NOT ROOT: mounts cannot be tested"
)


def run(*words: str | Path) -> None:
    subprocess.run([str(w) for w in words], check=True, capture_output=True)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Not shared, so that mounts below it can be moved."""
    run("mount", "-t", "tmpfs", "place", tmp_path)
    run("mount", "--make-private", tmp_path)
    (tmp_path / "m").mkdir()
    try:
        yield tmp_path
    finally:
        run("umount", "-R", tmp_path)


def tmpfs(at: Path, name: str) -> MountId:
    run("mount", "-t", "tmpfs", name, at)
    return mount_id_at(at)


@pytest.fixture(params=["alone", "unique", "old"])
def old(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Also as before Linux 6.13, where the rest is in the table, and before 6.8, which knows no
    unique ids."""
    if request.param == "unique":
        monkeypatch.setattr(mountinfo, "_NEEDED", 1 << 60)
    if request.param == "old":
        monkeypatch.setattr(mountinfo, "_STATX_MNT_ID_UNIQUE", 1 << 30)
    return bool(request.param == "old")


def test_a_mount_is_found_under_another(place: Path, old: bool) -> None:
    ours = tmpfs(place / "m", "ours")
    assert (ours.unique == 0) == old
    other = tmpfs(place / "m", "other")
    found = look_up([ours, other])
    assert found[ours].source == "ours"
    assert found[other].source == "other"
    assert found[ours].mountpoint == found[other].mountpoint == str(place / "m")
    assert mount_id_at(place / "m") == other
    run("umount", place / "m")
    assert mount_id_at(place / "m") == ours
    assert list(look_up([ours, other])) == [ours]


def test_a_mount_that_was_moved_is_found(place: Path, old: bool) -> None:
    ours = tmpfs(place / "m", "ours")
    (place / "to").mkdir()
    run("mount", "--move", place / "m", place / "to")
    assert look_up([ours])[ours].mountpoint == str(place / "to")


def test_what_takes_the_place_of_a_mount_is_another(place: Path, old: bool) -> None:
    ours = tmpfs(place / "m", "ours")
    run("umount", place / "m")
    tmpfs(place / "m", "other")
    # before 6.8 the number may come again, as may the device, but not both for another file system
    if not old:
        assert look_up([ours]) == {}


def test_a_lazily_unmounted_one_is_gone(place: Path, old: bool) -> None:
    ours = tmpfs(place / "m", "ours")
    with (place / "m" / "file").open("wb"):
        run("umount", "-l", place / "m")
        assert look_up([ours]) == {}


@pytest.mark.parametrize("name", ["a b", "a\nb", "a\\040b", "tab\there", "ü"])
def test_names_come_as_they_are(place: Path, name: str, old: bool) -> None:
    (place / name).mkdir()
    ours = tmpfs(place / name, name)
    found = mountinfo.find_mount(place / name)
    assert found is not None
    assert found.source == name
    assert look_up([ours]) == {ours: found}, "however the kernel is asked"


def test_a_mount_is_asked_for_without_the_table(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which a node has thousands of lines."""
    ours = tmpfs(place / "m", "ours")
    if not isinstance(mountinfo._stat(ours.unique), tuple):
        pytest.skip("LINUX BEFORE 6.13: the kernel cannot be asked for one mount alone")
    monkeypatch.setattr(mountinfo, "_lines", None)
    assert look_up([ours])[ours].mountpoint == str(place / "m")
    assert list(mountinfo.stack_at(place / "m")) == [ours]
    assert mountinfo.stack_at(place) != {}
    run("umount", place / "m")
    assert look_up([ours]) == {}
    assert mountinfo.stack_at(place / "m") == {}


def test_what_lies_on_top_of_each_other(place: Path, old: bool) -> None:
    """At one place, and not what only ends there: mounts in a directory of theirs."""
    point = place / "m"
    assert mountinfo.stack_at(point) == {}
    lower, upper = tmpfs(point, "lower"), tmpfs(point, "upper")
    (point / "in").mkdir()
    inner = tmpfs(point / "in", "inner")
    assert [m.source for m in mountinfo.stack_at(point).values()] == ["lower", "upper"]
    assert [m.source for m in mountinfo.stack_at(point / "in").values()] == ["inner"]
    assert [n.id for n in mountinfo.stack_at(point)] == [lower.id, upper.id]
    assert [n.id for n in mountinfo.stack_at(point / "in")] == [inner.id]
    assert mountinfo.stack_at(place / "nothing") == {}


def test_the_root_ends_the_look(old: bool) -> None:
    assert Path("/") in {Path(m.mountpoint) for m in mountinfo.stack_at(Path("/")).values()}


def test_names_that_are_not_utf8(place: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(place) + b"/\xff\xfe"))
    path.mkdir()
    ours = tmpfs(path, "ours")
    assert look_up([ours])[ours].mountpoint == str(path)


@pytest.mark.parametrize("name", ["a b", "tab\there", "line\nend", "back\\slash", "#1", "\udcff"])
def test_a_place_is_found_by_its_name(place: Path, name: str) -> None:
    """Without taking every other line apart, so as the kernel writes it."""
    point = place / name
    point.mkdir(exist_ok=True)
    lower, upper = tmpfs(point, "lower"), tmpfs(point, "upper")
    table = mountinfo.Table()
    try:
        assert [m.source for m in table.at(str(point))] == ["lower", "upper"]
        assert table.at(str(place / "other")) == []
        assert look_up([upper], table)[upper].source == "upper"
    finally:
        run("umount", point)
        run("umount", point)
    assert look_up([lower], mountinfo.Table()) == {}
    assert mountinfo.find_mount(point) is None


def test_changes_are_told(place: Path) -> None:
    watch = mountinfo.Watch()
    try:
        while watch.wait(0):
            pass
        tmpfs(place / "m", "ours")
        assert watch.wait(5)
        run("umount", place / "m")
        assert watch.wait(5)
    finally:
        watch.close()
