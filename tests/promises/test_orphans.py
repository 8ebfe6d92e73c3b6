"""What a successor cannot serve at once: tried again, its readers wait and then get EIO; let go
when nobody reads it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from cold import PATIENCE_S, service, successor
from rig import Rig, read_errno, regular_files
from trees import assert_tree

IMAGE = "one-lz4"


def _kill(rig: Rig) -> None:
    pid, _ = service(rig)
    os.kill(pid, signal.SIGKILL)
    successor(rig, pid)


def _until_served(rig: Rig) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while rig.status()["waiting"]:
        assert time.monotonic() < deadline, rig.log()
        time.sleep(0.05)


def _kept_files(keeper: int) -> list[str]:
    links = []
    for fd in Path(f"/proc/{keeper}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            links.append(os.readlink(fd))
    return [link for link in links if link.endswith(".blob.data")]


@pytest.mark.parametrize("in_time", [True, False])
def test_source_away_when_the_service_dies(
    rig: Rig, golden: Path, tmp_path: Path, in_time: bool
) -> None:
    image, blobs, away = golden / "images" / IMAGE, tmp_path / "blobs", tmp_path / "away"
    shutil.copytree(image / "blobs", blobs)
    rig.environment["NYDUS_FSCACHE_DENY_AFTER_S"] = "60" if in_time else "1"
    mount = rig.mount(image / "image.boot", blobs, "m", "--prefetch", "none")
    blobs.rename(away)
    for kept in (rig.root / "images").glob("*.meta"):
        shutil.rmtree(kept)
    _kill(rig)
    big = max(regular_files(mount), key=lambda p: p.stat().st_size)
    ends: list[int] = []
    reader = threading.Thread(target=lambda: ends.append(read_errno(big)))
    reader.start()
    (waiting,) = rig.status()["waiting"]
    assert (waiting["mountpoint"], waiting["transport"]) == (str(mount), "fanotify")
    if in_time:
        deadline = time.monotonic() + PATIENCE_S
        while not rig.status()["requests"]["waiting"] and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not ends
    else:
        reader.join(PATIENCE_S)
        assert ends == [errno.EIO]
        assert read_errno(big) == errno.EIO
    away.rename(blobs)
    _until_served(rig)
    reader.join(PATIENCE_S)
    assert ends == [0 if in_time else errno.EIO]
    assert_tree(mount, image / "expected.jsonl")
    _kill(rig)  # and it is known to the next one
    assert [m["mountpoint"] for m in rig.status()["mounts"]] == [str(mount)]
    rig.run("umount", mount)


def test_unmounted_while_its_source_is_away(rig: Rig, golden: Path, tmp_path: Path) -> None:
    image, blobs = golden / "images" / IMAGE, tmp_path / "blobs"
    shutil.copytree(image / "blobs", blobs)
    mount = rig.mount(image / "image.boot", blobs, "m", "--prefetch", "none")
    shutil.rmtree(blobs)
    for kept in (rig.root / "images").glob("*.meta"):
        shutil.rmtree(kept)
    _kill(rig)
    assert len(rig.status()["waiting"]) == 1
    with regular_files(mount)[0].open("rb"):
        assert rig.run("umount", mount, check=False).returncode == 6
    rig.run("umount", mount)
    assert rig.status()["waiting"] == []
    rig.run("stop")
    assert rig.processes() == []


def test_what_nobody_reads_is_let_go(rig: Rig, golden: Path) -> None:
    image = golden / "images" / IMAGE
    mount = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    _, keeper = service(rig)
    assert _kept_files(keeper)
    subprocess.run(["umount", str(mount)], check=True)
    _kill(rig)
    deadline = time.monotonic() + PATIENCE_S
    while _kept_files(keeper):
        assert time.monotonic() < deadline, rig.log()
        time.sleep(0.05)
    assert_tree(rig.mount(image / "image.boot", image / "blobs"), image / "expected.jsonl")


def test_state_lost_and_mounted_again(rig: Rig, golden: Path) -> None:
    """Another image first, which must not be given the number of the one that is still read."""
    image, other = golden / "images" / IMAGE, golden / "images" / "layers-zstd"
    old = rig.mount(image / "image.boot", image / "blobs", "old", "--prefetch", "none")
    (rig.root / "state.json").unlink()
    _kill(rig)
    new = rig.mount(other / "image.boot", other / "blobs", "other", "--prefetch", "none")
    assert_tree(new, other / "expected.jsonl")
    big = max(regular_files(old), key=lambda p: p.stat().st_size)
    assert read_errno(big) == errno.EIO
    again = rig.mount(image / "image.boot", image / "blobs", "again", "--prefetch", "none")
    assert_tree(again, image / "expected.jsonl")
    assert_tree(old, image / "expected.jsonl")
    subprocess.run(["umount", str(old)], check=True)
    for mount in (new, again):
        rig.run("umount", mount)
    rig.run("stop")
    assert rig.processes() == []
