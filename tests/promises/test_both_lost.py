"""Keeper and service killed at once: the documented limit, and what the next start does."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from rig import Rig
from trees import assert_tree


def _kill_both(rig: Rig) -> None:
    document = rig.status()
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
