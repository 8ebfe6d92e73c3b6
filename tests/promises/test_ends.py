"""What overlaps the end of the daemon: it never ends under a mount, and no mount is left behind.

The backend is a gate, so that a mount is under way for certain when the other thing happens.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gate import gated
from rangeserver import RangeServer
from rig import Rig, mounts_below, regular_files
from trees import assert_tree

from nydus_fscache.api.client import Client
from nydus_fscache.errors import DaemonError, FscacheError

PATIENCE_S = 30
DAEMON, MOUNTPOINT = 9, 6


@pytest.fixture
def image(golden: Path) -> Path:
    return (golden / "images" / "one-lz4").resolve()


@contextmanager
def in_background(call: Any, *args: Any) -> Iterator[Future[Any]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(call, *args)


def wait_for(true: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_ending(client: Client) -> bool:
    """It refuses new work: asked so that nothing else changes."""
    body = {"mountpoint": "/nowhere"}
    raw = socket.socket(socket.AF_UNIX)
    raw.connect(str(client.root / "api.sock"))
    connection = http.client.HTTPConnection("localhost")
    connection.sock = raw
    connection.request("POST", "/v1/prefetches", json.dumps(body))
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return bool(answer["error"]["kind"] == "DaemonEnding")


def start_daemon(rig: Rig, image: Path) -> Client:
    mount = rig.mount(image / "image.boot", image / "blobs", "first")
    rig.run("umount", mount)
    return Client(rig.root)


@pytest.mark.parametrize("how", ["stop", "SIGTERM to the keeper", "SIGTERM to the service"])
def test_a_mount_under_way_does_not_outlive_the_daemon(rig: Rig, image: Path, how: str) -> None:
    client = start_daemon(rig, image)
    status = rig.status()
    with gated(image / "blobs", rig.base) as gate:
        mount = rig.start("mount", image / "image.boot", rig.mountpoint(), "--backend", gate.config)
        gate.wait_until_asked()
        if how == "stop":
            stop: subprocess.Popen[bytes] | None = rig.start("stop")
        else:
            stop = None
            os.kill(status["pid" if "service" in how else "keeper_pid"], signal.SIGTERM)
        wait_for(lambda: is_ending(client))
        gate.open.set()
        assert mount.wait(PATIENCE_S) == DAEMON
        assert stop is None or stop.wait(PATIENCE_S) == 0
    rig.wait_for_end()
    assert rig.leftovers() == []


def test_a_connection_of_before_cannot_mount_while_it_ends(rig: Rig, image: Path) -> None:
    client = start_daemon(rig, image)
    kept = http.client.HTTPConnection("localhost")
    kept.sock = socket.socket(socket.AF_UNIX)
    kept.sock.connect(str(rig.root / "api.sock"))
    kept.request("GET", "/v1/status")
    kept.getresponse().read()
    with gated(image / "blobs", rig.base) as gate:
        mount = rig.start("mount", image / "image.boot", rig.mountpoint(), "--backend", gate.config)
        gate.wait_until_asked()
        stop = rig.start("stop")
        wait_for(lambda: is_ending(client))
        request = {
            "bootstrap": str(image / "image.boot"),
            "backend": {"type": "localfs", "localfs": {"dir": str(image / "blobs")}},
            "mountpoint": str(rig.mountpoint("other")),
        }
        kept.request("POST", "/v1/mounts", json.dumps(request))
        answer = json.loads(kept.getresponse().read())
        assert answer["error"]["kind"] == "DaemonEnding"
        assert answer["error"]["exit_code"] == DAEMON
        kept.close()
        gate.open.set()
        mount.wait(PATIENCE_S)
        assert stop.wait(PATIENCE_S) == 0
    assert mounts_below(rig.base) == []


def test_a_stop_that_is_refused_leaves_a_daemon_that_works(rig: Rig, image: Path) -> None:
    mount = rig.mount(image / "image.boot", image / "blobs")
    with regular_files(mount)[0].open("rb"):
        assert rig.run("stop", check=False).returncode == MOUNTPOINT
        other = rig.mount(image / "image.boot", image / "blobs", "other")
        assert_tree(other, image / "expected.jsonl")
    rig.run("stop")
    assert rig.leftovers() == []


def test_a_mount_that_meets_the_end_starts_another_daemon(rig: Rig, image: Path) -> None:
    client = start_daemon(rig, image)
    pid = rig.status()["pid"]
    with gated(image / "blobs", rig.base) as gate:
        first = rig.start("mount", image / "image.boot", rig.mountpoint(), "--backend", gate.config)
        gate.wait_until_asked()
        stop = rig.start("stop")
        wait_for(lambda: is_ending(client))
        mount = rig.start(
            "mount", image / "image.boot", rig.mountpoint("n"), "--blob-dir", image / "blobs"
        )
        time.sleep(0.3)  # it has met the daemon that ends, or will find none: both are right
        assert mount.poll() is None
        gate.open.set()
        assert first.wait(PATIENCE_S) == DAEMON
        assert stop.wait(PATIENCE_S) == 0
        assert mount.wait(PATIENCE_S) == 0
    assert rig.status()["pid"] != pid
    assert_tree(rig.base / "n", image / "expected.jsonl")
    rig.run("stop")
    assert rig.leftovers() == []


def test_a_first_mount_that_fails_ends_no_other(rig: Rig, image: Path, golden: Path) -> None:
    """It started the daemon, and another mount has begun when it fails."""
    bad = golden / "images" / "one-none-64k"
    with (
        gated(image / "blobs", rig.base) as good,
        gated(bad / "blobs", rig.base, status=404) as lost,
    ):
        first = rig.start("mount", bad / "image.boot", rig.mountpoint(), "--backend", lost.config)
        lost.wait_until_asked()
        second = rig.start(
            "mount", image / "image.boot", rig.mountpoint("n"), "--backend", good.config
        )
        good.wait_until_asked()
        lost.open.set()
        assert first.wait(PATIENCE_S) == 4
        good.open.set()
        assert second.wait(PATIENCE_S) == 0
        assert_tree(rig.base / "n", image / "expected.jsonl")
        rig.run("stop")
    assert rig.leftovers() == []


@pytest.mark.parametrize("command", ["mount", "bind"])
def test_a_first_command_that_fails_leaves_no_daemon(rig: Rig, image: Path, command: str) -> None:
    bad = rig.base / "bad.boot"
    bad.write_bytes((image / "image.boot").read_bytes()[:6000])
    words = [rig.mountpoint()] if command == "mount" else ["--fsid", "x"]
    done = rig.run(command, bad, *words, "--blob-dir", image / "blobs", check=False)
    assert done.returncode in (3, 5)
    assert rig.leftovers() == []


def test_the_daemon_starts_while_its_image_is_asked_for(rig: Rig) -> None:
    """And ends again, as there is no such image."""
    started = []

    def route(*_: object) -> tuple[int, dict[str, str], bytes]:
        wait_for(lambda: Client(rig.root).runs())
        started.append(True)
        return 404, {}, b""

    with RangeServer(rig.base, route=route) as server:
        reference = f"127.0.0.1:{server.port}/team/app:none"
        done = rig.run("mount", reference, rig.mountpoint(), "--plain-http", check=False)
    assert done.returncode == 4
    assert started
    assert rig.leftovers() == []


@pytest.mark.parametrize("command", ["mount", "bind"])
def test_a_command_that_fails_after_a_crash_forgets_nothing(
    rig: Rig, image: Path, command: str
) -> None:
    mount = rig.mount(image / "image.boot", image / "blobs")
    status = rig.status()
    both = status["keeper_pid"], status["pid"]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in both:
            os.kill(pid, number)
    wait_for(lambda: not rig.processes())
    words = ["/nowhere"] if command == "mount" else ["--fsid", "x"]
    bad = rig.base / "bad.boot"
    bad.write_bytes((image / "image.boot").read_bytes()[:6000])
    failed = rig.run(command, bad, *words, "--blob-dir", image / "blobs", check=False)
    assert failed.returncode != 0
    assert_tree(mount, image / "expected.jsonl")
    assert [m["mountpoint"] for m in rig.status()["mounts"] if m["mounted"]] == [str(mount)]


def test_stop_waits_for_an_image_that_is_being_restored(rig: Rig, golden: Path) -> None:
    """Its mount is made anew in the background: not after the daemon has looked."""
    image = (golden / "images" / "layers-zran").resolve()
    with gated(image / "blobs", rig.base) as gate:
        gate.open.set()
        mount = rig.mountpoint()
        rig.run(
            "mount", image / "image.boot", mount, "--backend", gate.config, "--prefetch", "none"
        )
        status = rig.status()
        both = status["keeper_pid"], status["pid"]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in both:
                os.kill(pid, number)
        wait_for(lambda: not rig.processes())
        for path in (rig.root / "images").glob("*.meta"):
            shutil.rmtree(path)
        gate.open.clear()
        gate.asked.clear()
        client = Client(rig.root)
        client.serve_again()
        gate.wait_until_asked()
        with in_background(client.call, "POST", "/v1/stop") as stop:
            wait_for(lambda: is_ending(client))
            gate.open.set()
            assert stop.result(PATIENCE_S)["stopped"]
    rig.wait_for_end()
    assert mounts_below(rig.base) == []


def test_only_an_idle_daemon_stops_when_asked_to_stop_if_idle(rig: Rig, image: Path) -> None:
    client = start_daemon(rig, image)
    mount = rig.mount(image / "image.boot", image / "blobs")
    assert client.call("POST", "/v1/stop", {"if_idle": True}) == {"stopped": False}
    rig.run("umount", mount)
    with gated(image / "blobs", rig.base) as gate:
        busy = rig.start("mount", image / "image.boot", mount, "--backend", gate.config)
        gate.wait_until_asked()
        assert client.call("POST", "/v1/stop", {"if_idle": True}) == {"stopped": False}
        gate.open.set()
        assert busy.wait(PATIENCE_S) == 0
    rig.run("umount", mount)
    assert client.call("POST", "/v1/stop", {"if_idle": True}) == {"stopped": True}
    rig.wait_for_end()


def test_stops_at_once_are_one(rig: Rig, image: Path) -> None:
    start_daemon(rig, image)
    rig.mount(image / "image.boot", image / "blobs")
    stops = [rig.start("stop") for _ in range(4)]
    # who comes when it has ended finds none
    assert {s.wait(PATIENCE_S) for s in stops} <= {0, DAEMON}
    assert rig.leftovers() == []


def test_calls_during_an_upgrade_are_answered_by_the_next_service(rig: Rig, image: Path) -> None:
    client = start_daemon(rig, image)
    errors: list[FscacheError] = []
    ended = threading.Event()

    def mount_and_umount(name: str) -> None:
        point = str(rig.mountpoint(name))
        request = {
            "bootstrap": str(image / "image.boot"),
            "backend": {"type": "localfs", "localfs": {"dir": str(image / "blobs")}},
            "mountpoint": point,
        }
        while not ended.is_set():
            try:
                client.call("POST", "/v1/mounts", request)
                client.call("DELETE", "/v1/mounts", mountpoint=point)
            except FscacheError as e:
                errors.append(e)

    threads = [threading.Thread(target=mount_and_umount, args=(f"t{n}",)) for n in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            rig.run("upgrade")
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert [str(e) for e in errors] == []


@pytest.mark.parametrize("point", ["missing", "busy"])
def test_a_failed_mount_changes_no_limit(rig: Rig, image: Path, point: str) -> None:
    rig.mount(image / "image.boot", image / "blobs", "busy", "--cache-limit", "1G")
    words = (image / "image.boot", rig.base / point, "--blob-dir", image / "blobs")
    assert rig.run("mount", *words, "--cache-limit", "1", check=False).returncode == MOUNTPOINT
    assert json.loads(rig.run("gc", "--dry-run", "--json").stdout)["limit"] == 1 << 30


def test_the_last_limit_holds_through_restarts(rig: Rig, image: Path) -> None:
    def limit() -> int:
        return int(json.loads(rig.run("gc", "--dry-run", "--json").stdout)["limit"])

    serve = rig.start("serve", "--cache-limit", "20G")
    rig.wait_until_ready()
    assert limit() == 20 << 30
    rig.mount(image / "image.boot", image / "blobs", "m", "--cache-limit", "1G")
    pid = rig.status()["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: rig.status()["pid"] != pid)
    assert limit() == 1 << 30
    rig.run("upgrade")
    assert limit() == 1 << 30
    rig.run("stop")
    serve.wait(PATIENCE_S)
    again = rig.start("serve", "--cache-limit", "0")
    rig.wait_until_ready()
    assert limit() == 0
    rig.run("stop")
    again.wait(PATIENCE_S)


def test_a_daemon_that_lost_its_socket_is_told(rig: Rig, image: Path) -> None:
    with pytest.raises(DaemonError, match="no daemon runs"):
        Client(rig.root).call("GET", "/v1/status")


def test_the_slower_of_two_that_start_a_daemon_leaves_none_behind(rig: Rig) -> None:
    """It would get the lock when the quicker one has ended, and serve what nobody asked for."""
    spawned = []

    class Slower(Client):
        def _spawn(self) -> int:
            Client(self.root).start_daemon()  # another is quicker, in the last moment
            spawned.append(super()._spawn())
            return spawned[-1]

    rig.root.mkdir()
    assert not Slower(rig.root).start_daemon()
    assert [pid for pid in spawned if Path(f"/proc/{pid}").exists()] == []
    rig.run("stop")
    rig.wait_for_end()
