"""Keeper and service killed at once: the documented limit, and what the next start does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from rig import Rig, each_transport, mounts_below
from trees import assert_tree

from nydus_fscache.api.client import Client
from nydus_fscache.kernel import mountinfo


@pytest.mark.parametrize("busy", [False, True])
def test_mount_is_made_again(rig: Rig, golden: Path, busy: bool) -> None:
    image = golden / "images" / "one-lz4"
    mount = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    files = [p for p in mount.rglob("*") if p.is_file() and not p.is_symlink()]
    big = max(files, key=lambda p: p.stat().st_size)
    with big.open("rb") if busy else contextlib.nullcontext():
        rig.kill_at_once()
        zeros = bytes(big.stat().st_size)
        assert big.read_bytes() == zeros, "the limit: nobody was left to hold readers back"
        rig.mount(image / "image.boot", image / "blobs", "other")
        assert_tree(mount, image / "expected.jsonl")
        assert "may have shown zeros" in rig.log()
        assert ("restart the programs" in rig.log()) == busy
    rig.run("umount", rig.base / "other")
    rig.run("umount", mount)


HANGS = """
import time
from nydus_fscache.kernel import mount
mount.attach = lambda *words: time.sleep(1000)
"""


BUSY = """
import pathlib, time
from nydus_fscache.kernel import mount
def umount(*words, **options):
    pathlib.Path(__file__).with_name("tried").touch()
    time.sleep(1000)
mount.umount = umount
"""


@each_transport
def test_killed_between_the_old_mount_and_the_new(rig: Rig, golden: Path) -> None:
    """The next start finds no mount, and knows that nobody wanted that."""
    image = golden / "images" / "one-lz4"
    mount = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    rig.kill_at_once()
    (rig.base / "hook").mkdir()
    (rig.base / "hook" / "sitecustomize.py").write_text(HANGS)
    rig.environment["PYTHONPATH"] = str(rig.base / "hook")
    rig.start("serve")
    deadline = time.monotonic() + 30
    while str(mount) in mounts_below(rig.base):
        assert time.monotonic() < deadline, rig.log()
        time.sleep(0.02)
    rig.kill_at_once()
    assert str(mount) not in mounts_below(rig.base)
    rig.environment.clear()
    rig.mount(image / "image.boot", image / "blobs", "other")
    rig.wait_until_mounted(mount)
    assert_tree(mount, image / "expected.jsonl")
    rig.run("stop")
    assert rig.leftovers() == []


def test_a_useless_mount_is_known_by_a_successor_that_inherits(rig: Rig, golden: Path) -> None:
    """The first service after the loss opens what a second one inherits of it: killed before it
    has made the mount again, it leaves one that looks served."""
    image = golden / "images" / "one-lz4"
    mount = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    with next(p for p in mount.rglob("*") if p.is_file()).open("rb"):
        device = mount.stat().st_dev
        rig.kill_at_once()
        state = rig.root / "state.json"
        before = state.read_bytes()
        (rig.base / "hook").mkdir()
        (rig.base / "hook" / "sitecustomize.py").write_text(BUSY)
        rig.environment["PYTHONPATH"] = str(rig.base / "hook")
        rig.start("serve")
        deadline = time.monotonic() + 30
        while not (rig.base / "hook" / "tried").exists():
            assert time.monotonic() < deadline, rig.log()
            time.sleep(0.02)
        assert state.read_bytes() != before, "what is to be done is on record"
        (rig.base / "hook" / "sitecustomize.py").unlink()
        for pid in rig.processes():
            if b"keeper.py" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        rig.wait_until_ready()
        rig.wait_until_mounted(mount)
        assert mount.stat().st_dev != device
        assert_tree(mount, image / "expected.jsonl")
    rig.run("stop")


def test_a_mount_in_the_place_of_one_that_somebody_unmounted(rig: Rig, golden: Path) -> None:
    """It has that one's number, and its own is not on record yet."""
    image = golden / "images" / "one-lz4"
    other = rig.mount(image / "image.boot", image / "blobs", "other", "--prefetch", "none")
    mount = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    state = rig.root / "state.json"

    def recorded() -> dict[str, Any]:
        deadline = time.monotonic() + 30
        while True:
            found: dict[str, Any] = json.loads(state.read_text())
            if all(b["mount"] for b in found["bindings"]):
                return found
            assert time.monotonic() < deadline
            time.sleep(0.05)

    before = recorded()
    subprocess.run(["umount", mount], check=True)
    rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    pids = rig.status()
    os.kill(pids["pid"], signal.SIGSTOP)  # it does not come to write more
    old = before["bindings"][-1]
    before["bindings"].append({**old, "mount": {}})
    new = mountinfo.mount_id_at(mount)
    old["mount"] |= {"id": new.id, "device": new.device}  # where others mount, too, often not
    state.write_text(json.dumps(before))
    rig.kill_at_once()
    Client(rig.root).serve_again()
    served = {m["mountpoint"] for m in rig.status()["mounts"] if m["mounted"]}
    assert served == {str(other), str(mount)}
    assert_tree(mount, image / "expected.jsonl")
    assert_tree(other, image / "expected.jsonl")
    rig.run("stop")


def test_what_was_unmounted_meanwhile_starts_no_daemon_that_stays(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "one-lz4"
    mount = rig.mount(image / "image.boot", image / "blobs")
    rig.kill_at_once()
    subprocess.run(["umount", mount], check=True)
    client = Client(rig.root)
    client.serve_again()
    assert not client.runs()
    assert rig.processes() == []
