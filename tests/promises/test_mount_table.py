"""The mount table of the kernel is the truth, whatever somebody else does to a mount."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from gate import gated
from rig import CLI, Rig, mounts_below, regular_files
from trees import assert_tree

from nydus_fscache.api.client import Client

MOUNTPOINT, USAGE = 6, 2
PATIENCE_S = 30


@pytest.fixture
def image(golden: Path) -> Path:
    return (golden / "images" / "one-lz4").resolve()


def run(*words: str | Path) -> None:
    subprocess.run([str(w) for w in words], check=True, capture_output=True)


def request(image: Path, point: Path) -> dict[str, object]:
    return {
        "bootstrap": str(image / "image.boot"),
        "backend": {"type": "localfs", "localfs": {"dir": str(image / "blobs")}},
        "mountpoint": str(point),
    }


def test_an_umount_by_hand_is_noticed_without_a_question(rig: Rig, image: Path) -> None:
    """The daemon watches: the image is let go of by itself."""
    mount = rig.mount(image / "image.boot", image / "blobs")
    run("umount", mount)
    deadline = time.monotonic() + PATIENCE_S
    while json.loads((rig.root / "state.json").read_text())["bindings"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    again = rig.mount(image / "image.boot", image / "blobs")
    assert_tree(again, image / "expected.jsonl")
    rig.run("stop")
    assert rig.leftovers() == []


@pytest.mark.parametrize("command", ["umount", "stop"])
def test_an_umount_by_hand_after_one_of_ours_that_failed(
    rig: Rig, image: Path, command: str
) -> None:
    mount = rig.mount(image / "image.boot", image / "blobs")
    with regular_files(mount)[0].open("rb"):
        words = [command, mount] if command == "umount" else [command]
        assert rig.run(*words, check=False).returncode == MOUNTPOINT
        run("umount", "-l", mount)
        assert [m for m in rig.status()["mounts"] if m["mounted"]] == []
        rig.mount(image / "image.boot", image / "blobs")
    run("umount", mount)
    rig.run("stop")
    assert rig.leftovers() == []


def test_umount_of_a_parent(rig: Rig, image: Path) -> None:
    parent = rig.mountpoint("parent")
    run("mount", "-t", "tmpfs", "parent", parent)
    (parent / "m").mkdir()
    rig.mount(image / "image.boot", image / "blobs", "parent/m")
    run("umount", "-R", parent)
    assert [m for m in rig.status()["mounts"] if m["mounted"]] == []
    rig.run("stop")
    assert rig.leftovers() == []


def test_what_lies_on_top_is_named_and_stays(rig: Rig, image: Path) -> None:
    mount = rig.mount(image / "image.boot", image / "blobs")
    run("mount", "-t", "tmpfs", "precious", mount)
    (mount / "file").write_text("precious")
    for words in (("umount", mount), ("stop",)):
        done = rig.run(*words, check=False)
        assert done.returncode == MOUNTPOINT
        assert "tmpfs (precious) is mounted on top" in done.stderr
        assert f"umount {mount}" in done.stderr
    assert (mount / "file").read_text() == "precious"
    os.kill(rig.status()["keeper_pid"], signal.SIGTERM)
    time.sleep(0.5)
    assert (mount / "file").read_text() == "precious"
    run("umount", mount)
    rig.run("umount", mount)
    rig.run("stop")
    assert rig.leftovers() == []


def test_another_daemons_mount_on_top_stays(rig: Rig, image: Path) -> None:
    mount = rig.mount(image / "image.boot", image / "blobs")
    other = Rig(rig.base / "other")
    other.base.mkdir()
    try:
        done = other.run(
            "mount", image / "image.boot", mount, "--blob-dir", image / "blobs", check=False
        )
        assert done.returncode == MOUNTPOINT
        assert "erofs" in done.stderr
        assert "nydus-fscache umount" not in done.stderr
    finally:
        other.clean()


@pytest.mark.parametrize("spelling", ["link/m", "real/x/../m", "real//m/"])
def test_a_place_has_many_names(rig: Rig, image: Path, spelling: str) -> None:
    real = rig.base / "real" / "m"
    real.mkdir(parents=True)
    (rig.base / "real" / "x").mkdir()
    (rig.base / "link").symlink_to(rig.base / "real")
    rig.mount(image / "image.boot", image / "blobs", "first")
    client = Client(rig.root)
    asked = f"{rig.base}/{spelling}"
    client.call("POST", "/v1/mounts", {**request(image, real), "mountpoint": asked})
    pid = rig.status()["pid"]
    os.kill(pid, signal.SIGKILL)
    assert client.wait_for_successor(pid)["pid"] != pid
    assert_tree(real, image / "expected.jsonl")
    assert str(real) in {m["mountpoint"] for m in rig.status()["mounts"] if m["mounted"]}
    client.call("DELETE", "/v1/mounts", mountpoint=asked)
    assert str(real) not in mounts_below(rig.base)


@pytest.mark.parametrize("name", ["m", "link"])
def test_two_mounts_at_one_place(rig: Rig, image: Path, name: str) -> None:
    """The second comes for certain while the first is under way, maybe by another name."""
    rig.mount(image / "image.boot", image / "blobs", "first")
    (rig.base / "link").symlink_to(rig.mountpoint())
    with gated(image / "blobs", rig.base) as gate:
        first = rig.start("mount", image / "image.boot", rig.base / "m", "--backend", gate.config)
        gate.wait_until_asked()
        second = rig.run(
            "mount", image / "image.boot", rig.base / name, "--blob-dir", image / "blobs",
            check=False,
        )  # fmt: skip
        assert second.returncode == MOUNTPOINT
        assert "another mount has begun there" in second.stderr
        gate.open.set()
        assert first.wait(PATIENCE_S) == 0
    assert mounts_below(rig.base).count(str(rig.base / "m")) == 1
    rig.run("umount", rig.base / name)
    assert str(rig.base / "m") not in mounts_below(rig.base)


def test_a_copy_in_another_namespace_is_named(rig: Rig, image: Path) -> None:
    mount = rig.mount(image / "image.boot", image / "blobs")
    words = ["unshare", "-m", "--propagation", "private", "sh", "-c", "echo; exec sleep 100"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline()
            done = rig.run("stop", check=False)
            assert done.returncode == MOUNTPOINT
            assert f"{holder.pid} (sleep)" in done.stderr
            assert "another mount namespace" in done.stderr
            shown = [x for x in rig.run("status").stdout.splitlines() if x.startswith(str(mount))]
            assert "unmounted, in use" in shown[0]
        finally:
            holder.kill()
    deadline = time.monotonic() + PATIENCE_S
    while rig.run("stop", check=False).returncode:
        assert time.monotonic() < deadline
    assert rig.leftovers() == []


def test_a_program_with_an_open_file_is_named(rig: Rig, image: Path) -> None:
    mount = rig.mount(image / "image.boot", image / "blobs")
    reader = subprocess.Popen(["sleep", "100"], cwd=mount)
    try:
        done = rig.run("umount", mount, check=False)
        assert done.returncode == MOUNTPOINT
        assert f"{reader.pid} (sleep)" in done.stderr
    finally:
        reader.kill()
        reader.wait()


def test_a_caller_in_another_namespace_is_told(rig: Rig, image: Path) -> None:
    rig.mount(image / "image.boot", image / "blobs")
    words = ("mount", "--root", rig.root, image / "image.boot", rig.mountpoint("n"))
    done = subprocess.run(
        [*("unshare", "-m"), *CLI, *map(str, words), "--blob-dir", str(image / "blobs")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == MOUNTPOINT
    assert "namespace" in done.stderr
    assert str(rig.status()["pid"]) in done.stderr


@pytest.mark.parametrize("above", [0, 1])
def test_a_mount_hides_no_blobs(rig: Rig, image: Path, above: int) -> None:
    """Neither its own nor those of another mount; a bootstrap may be hidden, it was copied."""
    place = rig.base / "x" / "images"
    place.mkdir(parents=True)
    run("cp", "-r", image / "blobs", place / "blobs")
    run("cp", image / "image.boot", place / "image.boot")
    words = ("mount", place / "image.boot", rig.mountpoint(), "--blob-dir", place / "blobs")
    rig.run(*words, "--prefetch", "none")
    hiding = [place, place.parent][above]
    for blobs in (place / "blobs", image / "blobs"):
        done = rig.run("mount", image / "image.boot", hiding, "--blob-dir", blobs, check=False)
        assert done.returncode == USAGE
        assert "would hide" in done.stderr
    assert_tree(rig.base / "m", image / "expected.jsonl")
    rig.run("umount", rig.base / "m")
    rig.run("mount", place / "image.boot", hiding, "--blob-dir", image / "blobs")
    assert_tree(hiding, image / "expected.jsonl")
