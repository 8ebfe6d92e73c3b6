"""kill -9 of the service at random moments under 8 readers: a pause, never a byte, never EIO."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import time
from pathlib import Path

from load import Load
from rangeserver import RangeServer
from rig import Rig

PATIENCE_S = 60
LATENCY_MS, MBPS = 15, 1.5  # so slow that the tree is cold, and readers wait, at every kill


def service(rig: Rig) -> tuple[int, int]:
    """(service, keeper), once a service answers."""
    document = rig.status()
    return document["pid"], document["keeper_pid"]


def successor(rig: Rig, old: int) -> int:
    """The pid of the next service, as soon as it runs; does not wait until it answers."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for pid in rig.processes():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if pid != old and not any(w.endswith(b"keeper.py") for w in words):
                    return pid
        time.sleep(0.005)
    raise AssertionError(f"no successor of {old}\n{rig.log()}")


def cold_rounds(rig: Rig, image: Path, backend: Path, kills: int) -> tuple[int, int, float]:
    """Kill ``kills`` times over cold trees; (kills, reads, longest pause)."""
    dice = random.Random(4)
    done = reads = 0
    longest = 0.0
    while done < kills:
        mount = rig.mountpoint()
        rig.run("mount", image / "image.boot", mount, "--backend", backend, "--prefetch", "none")
        pid, _ = service(rig)
        with Load(mount, image / "expected.jsonl") as load:
            for _ in range(5):
                time.sleep(dice.uniform(0.0, 0.12))
                os.kill(pid, signal.SIGKILL)
                done += 1
                pid = successor(rig, pid)
                time.sleep(dice.uniform(0.15, 0.7))
            reached = rig.status()
        assert load.wrong == [], rig.log()
        assert load.reads > 0
        assert reached["requests"]["denied"] == 0
        reads += load.reads
        longest = max(longest, load.longest_s)
        assert rig.status()["requests"]["waiting"] == 0, "the journal is settled"
        rig.run("umount", mount)
        rig.run("stop")
        assert rig.processes() == []
        for path in (rig.root / "cache").iterdir():
            path.unlink()
    return done, reads, longest


def test_service_killed_under_readers(rig: Rig, golden: Path, rounds: int) -> None:
    image, backend = golden / "images" / "layers-zstd", rig.base / "backend.json"
    with RangeServer(image / "blobs", latency_ms=LATENCY_MS, mbps=MBPS, keep_seen=False) as server:
        table = {"addr": server.url, "path": "/blobs"}
        backend.write_text(json.dumps({"type": "http-proxy", "http-proxy": table}))
        kills, reads, longest = cold_rounds(rig, image, backend, rounds)
    log = (rig.root / "daemon.log").read_text()
    settled = sum(int(n) for n in re.findall(r"took over \d+ images, (\d+) requests", log))
    assert settled >= kills // 5, "hardly a kill met a reader that waited"
    print(
        f"{kills} kills of the service, {settled} requests settled, {reads} files read, "
        f"longest pause {longest:.2f} s"
    )


def test_keeper_killed_then_service(rig: Rig, golden: Path, rounds: int) -> None:
    """A new keeper holds everything, so the next death of the service is covered again."""
    image = golden / "images" / "layers-zstd"
    mount = rig.mount(image / "image.boot", image / "blobs")
    kills = max(3, rounds // 6)
    with Load(mount, image / "expected.jsonl") as load:
        for _ in range(kills):
            pid, keeper = service(rig)
            os.kill(keeper, signal.SIGKILL)
            deadline = time.monotonic() + PATIENCE_S
            while rig.status()["keeper_pid"] == keeper and time.monotonic() < deadline:
                time.sleep(0.02)
            new_pid, new_keeper = service(rig)
            assert new_pid == pid
            assert new_keeper != keeper
            os.kill(pid, signal.SIGKILL)
            successor(rig, pid)
            assert rig.status()["keeper_pid"] == new_keeper
    assert load.wrong == [], rig.log()
    assert rig.status()["requests"]["waiting"] == 0
    print(f"{kills} keepers and services killed, longest pause {load.longest_s:.2f} s")
    rig.run("umount", mount)
    rig.run("stop")
    assert rig.processes() == []
