"""A service that cannot be started: readers wait, then get EIO; never zeros, never for ever."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from model import until
from rig import Rig, each_transport
from trees import assert_tree


@each_transport
def test_readers_get_eio_until_a_start_succeeds(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "one-lz4"
    rig.environment["NYDUS_FSCACHE_DENY_AFTER_S"] = "1"
    mount = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    files = [p for p in mount.rglob("*") if p.is_file() and not p.is_symlink()]
    big = max(files, key=lambda p: p.stat().st_size)
    state = rig.root / "state.json"
    good = state.read_bytes()
    state.write_text("{")  # every start fails over it
    os.kill(rig.status()["pid"], signal.SIGKILL)
    with pytest.raises(OSError, match="Input/output") as caught:
        big.read_bytes()
    assert caught.value.errno == errno.EIO
    state.write_bytes(good)
    rig.status()  # answers once a start has succeeded
    assert_tree(mount, image / "expected.jsonl")
    rig.run("umount", mount)


def test_stopped_service_is_a_pause(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "one-lz4"
    mount = rig.mount(image / "image.boot", image / "blobs")
    pid = rig.status()["pid"]
    os.kill(pid, signal.SIGSTOP)
    reader = subprocess.Popen(
        [sys.executable, "-c", "import sys, trees; from pathlib import Path\n"
         "trees.assert_tree(Path(sys.argv[1]), Path(sys.argv[2]))",
         str(mount), str(image / "expected.jsonl")],
        cwd=Path(__file__).parents[1] / "kit",
    )  # fmt: skip
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            reader.wait(timeout=float(os.environ.get("NYDUS_TEST_STOP_S", "3")))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert reader.wait(timeout=120) == 0
    assert rig.status()["pid"] == pid
    rig.run("umount", mount)


def test_a_call_whose_client_gave_up_is_not_made_later(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "one-lz4"
    mount = rig.mount(image / "image.boot", image / "blobs")
    pid = rig.status()["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        with socket.socket(socket.AF_UNIX) as call:
            call.connect(str(rig.root / "api.sock"))
            line = f"DELETE /v1/mounts?mountpoint={mount} HTTP/1.1"
            call.sendall(f"{line}\r\nContent-Length: 0\r\n\r\n".encode())
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: "its client is gone" in rig.log(), "the call is read")
    assert [m["mountpoint"] for m in rig.status()["mounts"] if m["mounted"]] == [str(mount)]
    assert_tree(mount, image / "expected.jsonl")
