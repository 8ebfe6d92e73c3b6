"""The host of fronts: a front that fails or dies at any moment leaves nothing in it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fronts import CONFIG, Engine, Unix

from nydus_fscache.api.nydusd import host, node_checks
from nydus_fscache.errors import KernelRefused

PATIENCE_S = 30.0


class Host:
    """One in this process; ``engine`` stands for the daemon of the node."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.base, self.engine = base, Engine()
        (base / "mnt").mkdir()
        monkeypatch.setattr(host, "NodeDaemon", lambda *_: self.engine)
        monkeypatch.setattr(node_checks, "at_start", list)
        self._host = host._Host(base)

    @contextlib.contextmanager
    def front(self, **changed: Any) -> Iterator[tuple[socket.socket, threading.Thread]]:
        """The connection of a ``nydusd`` that has sent its request, and the thread of its front."""
        wanted = {
            "kind": "fuse", "mountpoint": str(self.base / "mnt"), "instance": "",
            "apisock": str(self.base / "api.sock"), "supervisor": "", "waits": False,
            "cachefiles": "", "own": None, "blobs": [], "log_file": str(self.base / "log"),
            "log_level": "INFO", "log_rotation_mib": 0, **changed,
        }  # fmt: skip
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=self._host.serve, args=(theirs,))
        with ours:
            socket.send_fds(ours, [json.dumps(wanted).encode() + b"\n"], [2])
            thread.start()
            yield ours, thread
        thread.join(PATIENCE_S)
        assert not thread.is_alive()

    def call(self, method: str, target: str) -> int:
        connection = Unix(self.base / "api.sock")
        try:
            connection.request(method, target)
            return connection.getresponse().status
        finally:
            connection.close()

    def log(self) -> str:
        return (self.base / "log").read_text()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def own(base: Path) -> dict[str, Any]:
    return {"name": "/", "source": str(base / "i"), "config": CONFIG, "prefetch_files": []}


def test_a_nydusd_that_dies_while_it_mounts_leaves_no_api(node: Host, tmp_path: Path) -> None:
    """An API that answers for a dead process hides its death from its successor."""
    point = str(tmp_path / "mnt")
    gate = node.engine.gates[point] = threading.Event()
    with node.front(own=own(tmp_path)) as (connection, _):
        while point not in node.engine.entered:
            time.sleep(0.01)
        connection.close()
        gate.set()
    assert (tmp_path / "api.sock").exists(), "as what was killed leaves it"
    with pytest.raises(ConnectionRefusedError):
        node.call("GET", "/api/v1/daemon")
    assert len(node.engine.mounts) == 1, "which its successor adopts"


def test_a_front_without_an_api_leaves_no_mount(node: Host, tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "api.sock"
    with node.front(own=own(tmp_path), apisock=str(missing)) as (connection, thread):
        assert "error" in json.loads(connection.recv(1 << 16))
        thread.join(PATIENCE_S)
    assert node.engine.mounts == []


def test_fronts_that_fail_leave_no_descriptor(node: Host, tmp_path: Path) -> None:
    for number in range(8):
        before = len(os.listdir("/proc/self/fd"))
        missing = str(tmp_path / "missing" / "api.sock")
        with node.front(apisock=missing, log_file=str(tmp_path / f"log{number}")) as (_, thread):
            thread.join(PATIENCE_S)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_exit_ends_it_at_once_and_end_waits_for_nobody(node: Host, tmp_path: Path) -> None:
    for ending in ("exit", "end"):
        with node.front() as (connection, thread):
            assert connection.recv(16) == b"{}\n"
            assert node.call("GET", "/api/v1/daemon") == 200
            if ending == "exit":
                assert node.call("PUT", "/api/v1/daemon/exit") == 204
            else:
                connection.sendall(b"end\n")
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
            assert connection.recv(16) == b"", "its process ends then"
        assert not (tmp_path / "api.sock").exists()


def test_a_kernel_without_a_transport_is_in_the_log(node: Host) -> None:
    node.engine.failures = [KernelRefused("no transport works: a: b", hint="load a module")]
    with node.front() as (connection, _):
        assert connection.recv(16) == b"{}\n"
        end = time.monotonic() + PATIENCE_S
        while "no transport works: a: b; load a module" not in node.log():
            assert time.monotonic() < end, node.log()
            time.sleep(0.01)
