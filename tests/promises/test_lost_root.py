"""A root that an administrator moves or deletes under a running daemon: readers go on, nothing of
another daemon's is touched, and the daemon ends when nobody needs it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from model import until
from rig import Rig, each_transport
from trees import assert_tree


@pytest.fixture
def image(golden: Path) -> Path:
    return golden / "images" / "one-lz4"


@each_transport
def test_a_daemon_whose_root_is_deleted_serves_and_then_ends(rig: Rig, image: Path) -> None:
    mount = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    shutil.rmtree(rig.root)
    assert_tree(mount, image / "expected.jsonl")
    subprocess.run(["umount", mount], check=True)
    rig.wait_for_end()
    assert not rig.root.exists()


def test_what_has_the_name_of_a_lost_root_is_another_daemons(rig: Rig, image: Path) -> None:
    first = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    old = set(rig.processes())
    rig.root.rename(rig.base / "moved")
    second = rig.mount(image / "image.boot", image / "blobs", "m2", "--prefetch", "none")
    assert_tree(first, image / "expected.jsonl")
    subprocess.run(["umount", first], check=True)
    until(lambda: not old & set(rig.processes()), "the old daemon ends")
    assert list((rig.root / "images").glob("*.boot"))
    pid = rig.status()["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: rig.status()["pid"] != pid, "there is a successor")
    assert_tree(second, image / "expected.jsonl")
    assert [m["mountpoint"] for m in rig.status()["mounts"]] == [str(second)]


def test_a_successor_waits_for_a_root_that_was_moved(rig: Rig, image: Path) -> None:
    mount = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    pid = rig.status()["pid"]
    rig.root.rename(rig.base / "moved")
    os.kill(pid, signal.SIGKILL)
    log = rig.base / "moved" / "daemon.log"
    until(lambda: "was moved while it was in use" in log.read_text(), "it says why")
    assert not rig.root.exists()
    (rig.base / "moved").rename(rig.root)
    assert_tree(mount, image / "expected.jsonl")
    assert rig.status()["pid"] != pid


def test_a_successor_makes_a_root_anew_that_was_deleted(rig: Rig, image: Path) -> None:
    mount = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    pid = rig.status()["pid"]
    shutil.rmtree(rig.root)
    os.kill(pid, signal.SIGKILL)
    until((rig.root / "api.sock").exists, "a successor can be asked")
    rig.status()
    # what it was to serve is on no record any more: an error, or right
    for path in mount.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with pytest.raises(OSError, match="Input/output"):
                path.read_bytes()
            break
    subprocess.run(["umount", "-l", mount], check=True)
    again = rig.mount(image / "image.boot", image / "blobs", "m2")
    assert_tree(again, image / "expected.jsonl")
