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
from rig import Rig
from trees import assert_tree

from nydus_fscache.api.client import Client
from nydus_fscache.kernel import mountinfo


def _kill_both(rig: Rig) -> None:
    _kill(rig, rig.status())


def _kill(rig: Rig, document: dict[str, Any]) -> None:
    for pid in (document["keeper_pid"], document["pid"]):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while rig.processes() and time.monotonic() < deadline:
        for pid in rig.processes():  # a keeper that was just being started
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    assert rig.processes() == []


@pytest.mark.parametrize("busy", [False, True])
def test_mount_is_made_again(rig: Rig, golden: Path, busy: bool) -> None:
    image = golden / "images" / "one-lz4"
    mount = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    files = [p for p in mount.rglob("*") if p.is_file() and not p.is_symlink()]
    big = max(files, key=lambda p: p.stat().st_size)
    with big.open("rb") if busy else contextlib.nullcontext():
        _kill_both(rig)
        zeros = bytes(big.stat().st_size)
        assert big.read_bytes() == zeros, "the limit: nobody was left to hold readers back"
        rig.mount(image / "image.boot", image / "blobs", "other")
        assert_tree(mount, image / "expected.jsonl")
        assert "may have shown zeros" in rig.log()
        assert ("restart the programs" in rig.log()) == busy
    rig.run("umount", rig.base / "other")
    rig.run("umount", mount)


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
    _kill(rig, pids)
    Client(rig.root).serve_again()
    served = {m["mountpoint"] for m in rig.status()["mounts"] if m["mounted"]}
    assert served == {str(other), str(mount)}
    assert_tree(mount, image / "expected.jsonl")
    assert_tree(other, image / "expected.jsonl")
    rig.run("stop")


def test_what_was_unmounted_meanwhile_starts_no_daemon_that_stays(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "one-lz4"
    mount = rig.mount(image / "image.boot", image / "blobs")
    _kill_both(rig)
    subprocess.run(["umount", mount], check=True)
    client = Client(rig.root)
    client.serve_again()
    assert not client.runs()
    assert rig.processes() == []
