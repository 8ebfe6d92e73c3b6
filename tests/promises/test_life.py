"""How the daemon begins, ends and says what it is; nothing is left, and the cache stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rig import CLI, COMMAND_S, Rig, mounts_below, regular_files
from trees import assert_tree

import nydus_fscache
from nydus_fscache.api.client import Client

MOUNTPOINT = 6
NO_IO_URING = """
import ctypes, os, struct, sys
ops = ((0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000))
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *op) for op in ops))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(ops), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0, "no_new_privs"
assert libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(program)), 0, 0) == 0, "seccomp"
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def image(golden: Path) -> Path:
    return (golden / "images" / "one-lz4").resolve()  # as status names it


def test_status_says_what_is_served(rig: Rig, image: Path) -> None:
    mount = rig.mount(image / "image.boot", image / "blobs")
    regular_files(mount)[0].read_bytes()
    status = rig.status()
    assert status["version"] == nydus_fscache.__version__
    assert status["pid"] in rig.processes()
    assert status["keeper_pid"] in rig.processes()
    (mounted,) = status["mounts"]
    assert mounted["mountpoint"] == str(mount)
    assert mounted["image"] == str(image / "image.boot")
    assert mounted["transport"] == "fanotify"
    (blob,) = status["blobs"]
    assert blob["id"] == next((image / "blobs").iterdir()).name
    assert 0 < blob["present"] <= blob["size"]
    assert blob["fetched"] > 0
    assert blob["requests"] > 0
    assert blob["errors"] == 0
    text = rig.run("status").stdout
    assert str(mount) in text
    assert blob["id"][:12] in text


def test_umount_and_stop_leave_nothing(rig: Rig, image: Path) -> None:
    mount = rig.mount(image / "image.boot", image / "blobs")
    rig.run("umount", mount)
    assert mounts_below(rig.base) == []
    assert rig.status()["mounts"] == []
    rig.run("stop")
    assert rig.leftovers() == []
    done = rig.run("stop", check=False)
    assert done.returncode == 9
    assert "no daemon runs" in done.stderr


def test_sigterm_is_clean(rig: Rig, image: Path) -> None:
    rig.mount(image / "image.boot", image / "blobs")
    os.kill(rig.status()["keeper_pid"], signal.SIGTERM)
    rig.wait_for_end()
    assert rig.leftovers() == []


def test_a_busy_mount_is_not_torn_down(rig: Rig, image: Path) -> None:
    mount = rig.mount(image / "image.boot", image / "blobs")
    path = regular_files(mount)[0]
    with path.open("rb") as f:
        for words in (("umount", mount), ("stop",)):
            done = rig.run(*words, check=False)
            assert done.returncode == MOUNTPOINT, done.stderr
            assert "in use" in done.stderr
            assert "hint: " in done.stderr
        assert f.read() is not None
    rig.run("stop")
    assert rig.leftovers() == []


def test_the_cache_serves_the_next_mount(rig: Rig, image: Path) -> None:
    for again in (False, True):
        mount = rig.mount(image / "image.boot", image / "blobs")
        assert_tree(mount, image / "expected.jsonl")
        assert (rig.fetched() == 0) == again
        rig.run("stop")
    assert rig.leftovers() == []


def test_a_part_that_is_cached_serves_the_next_mount(rig: Rig, image: Path) -> None:
    for again in (False, True):
        mount = rig.mount(image / "image.boot", image / "blobs")
        regular_files(mount)[0].read_bytes()
        assert (rig.fetched() == 0) == again
        rig.run("umount", mount)
    for _ in range(2):
        rig.run("stop")
        mount = rig.mount(image / "image.boot", image / "blobs")
        regular_files(mount)[0].read_bytes()
        assert rig.fetched() == 0


def test_serve_in_the_foreground(rig: Rig, image: Path) -> None:
    served = subprocess.Popen(
        [*CLI, "serve", "--root", str(rig.root)], stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + COMMAND_S
        while not Client(rig.root).runs():
            assert served.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        mount = rig.mount(image / "image.boot", image / "blobs")
        assert rig.status()["keeper_pid"] == served.pid
        assert_tree(mount, image / "expected.jsonl")
        served.terminate()
        _, log = served.communicate(timeout=COMMAND_S)
    finally:
        served.kill()
        served.wait()
    assert served.returncode == 0, log
    assert f"mounted {image / 'image.boot'}" in log
    assert rig.leftovers() == []


def test_mountpoint_with_a_space(rig: Rig, image: Path) -> None:
    mount = rig.mount(image / "image.boot", image / "blobs", "with a space, a comma\\and more")
    assert_tree(mount, image / "expected.jsonl")
    assert rig.status()["mounts"][0]["mountpoint"] == str(mount)
    rig.run("umount", mount)
    assert mounts_below(rig.base) == []


def test_without_io_uring(rig: Rig, image: Path) -> None:
    rig.prefix = [sys.executable, "-c", NO_IO_URING]
    mount = rig.mount(image / "image.boot", image / "blobs")
    assert_tree(mount, image / "expected.jsonl")
    status = rig.status()
    assert status["event_loop"] == "poll"
    assert status["requests"]["events"] > 0
    rig.run("stop")
    assert rig.leftovers() == []


def test_doctor(rig: Rig) -> None:
    report = json.loads(rig.run("doctor", "--json").stdout)
    assert report["transports"][report["auto"]]["ok"]
    for finding in report["transports"].values():
        assert finding["ok"] or finding["remedy"]
    assert not rig.root.exists()
