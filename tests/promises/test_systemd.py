"""Keeper and service killed at once under a manager that holds their descriptors: only a pause."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cold import LATENCY_MS, MBPS
from load import Load
from manager import PATIENCE_S, RESOURCES, Manager
from rangeserver import RangeServer
from rig import Rig


@pytest.fixture
def manager(rig: Rig) -> Iterator[Manager]:
    places = {"/var/lib/nydus-fscache": rig.root}
    manager = Manager(rig.base, rig.environment, places)
    try:
        yield manager
    finally:
        _kill_unit(rig)
        manager.close()


def _kill_unit(rig: Rig) -> None:
    """As ``systemctl kill --signal=KILL``: everything in the unit's control group."""
    deadline = time.monotonic() + PATIENCE_S
    while pids := rig.processes():
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_unit_killed_under_readers(rig: Rig, manager: Manager, golden: Path, rounds: int) -> None:
    image, backend = golden / "images" / "layers-zstd", rig.base / "backend.json"
    dice = random.Random(7)
    kills = max(4, rounds // 6)
    manager.start()
    with RangeServer(image / "blobs", latency_ms=LATENCY_MS, mbps=MBPS, keep_seen=False) as server:
        table = {"addr": server.url, "path": "/blobs"}
        backend.write_text(json.dumps({"type": "http-proxy", "http-proxy": table}))
        mount = rig.mountpoint()
        rig.run("mount", image / "image.boot", mount, "--backend", backend, "--prefetch", "none")
        with Load(mount, image / "expected.jsonl") as load:
            for number in range(kills):
                if number == kills // 2:
                    rig.run("upgrade")  # systemctl reload
                time.sleep(dice.uniform(0.0, 0.3))
                _kill_unit(rig)
                manager.wait()
                time.sleep(dice.uniform(0.0, 0.1))
                manager.start()
        assert load.wrong == [], manager.tail()
        assert load.reads > 0
    assert manager.main is not None
    status = rig.status()
    assert status["requests"]["denied"] == status["requests"]["waiting"] == 0
    assert status["keeper_pid"] == manager.main.pid
    log = manager.log.read_text()
    assert "zeros" not in log
    settled = sum(int(n) for n in re.findall(r"took over \d+ images, (\d+) requests", log))
    assert settled > 0, "no kill met a reader that waited"
    print(f"{kills} units killed, {settled} requests settled, longest pause {load.longest_s:.2f} s")
    kept = manager.names()
    assert {"api", "fanotify", "journal", "lock"} <= set(kept)
    assert len(kept) == len(set(kept)), "a name is stored twice"
    blobs = len(status["blobs"])
    assert sum(name.startswith(("fill.", "pages.")) for name in kept) == 2 * blobs
    rig.run("umount", mount)
    assert not any(name.startswith(("fill.", "pages.")) for name in manager.names())
    os.kill(manager.main.pid, signal.SIGTERM)  # systemctl stop
    assert manager.wait() == 0
    assert manager.said[-1] == "STOPPING=1"
    assert manager.names() == []
    assert manager.strangers == 0


def test_signs_of_life(rig: Rig, manager: Manager) -> None:
    """A watchdog hears them at twice the rate it asked for; others' units hear nothing of ours."""
    rig.environment["WATCHDOG_USEC"] = "100000"
    manager.start()
    deadline = time.monotonic() + PATIENCE_S
    while manager.said.count("WATCHDOG=1") < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert manager.said.count("WATCHDOG=1") >= 3
    rig.run("stop")
    assert manager.wait() == 0


def test_the_graph_drivers_unit_is_ready_when_it_listens(rig: Rig) -> None:
    """Docker comes after it, and calls it at once."""
    (rig.base / "blobs").mkdir()
    listens = rig.base / "nydus.sock"
    manager = Manager(
        rig.base, rig.environment, {"/run/docker/plugins/nydus.sock": listens},
        "nydus-fscache-graphdriver.service",
        ("--root", str(rig.root), "--blob-dir", str(rig.base / "blobs")),
    )  # fmt: skip
    try:
        manager.start()
        with socket.socket(socket.AF_UNIX) as docker:
            docker.connect(str(listens))
            docker.sendall(b"POST /Plugin.Activate HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
            assert docker.recv(1 << 12).startswith(b"HTTP/1.1 200 ")
        assert manager.main is not None
        os.kill(manager.main.pid, signal.SIGTERM)
        assert manager.wait() == 0
        assert not listens.exists()
    finally:
        manager.close()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@pytest.mark.parametrize("name", sorted(file.name for file in RESOURCES.glob("*.service")))
def test_systemd_reads_our_units(tmp_path: Path, name: str) -> None:
    program = shutil.which("true")
    unit = tmp_path / name
    text = (RESOURCES / name).read_text()
    assert "=nydus-fscache " in text
    unit.write_text(text.replace("=nydus-fscache ", f"={program} "))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    complaints = [w for w in done.stderr.splitlines() if str(unit) in w]
    assert all("FileDescriptorStorePreserve" in w for w in complaints)  # older than 254
