"""A cold tree under readers, again and again, and something that strikes the daemon meanwhile."""

from __future__ import annotations

import contextlib
import json
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Result:
    strikes: int
    reads: int
    longest_s: float
    settled: int  # requests that a successor took up

    def __str__(self) -> str:
        return (
            f"{self.strikes} times: {self.settled} requests settled, {self.reads} files read, "
            f"longest pause {self.longest_s:.2f} s"
        )


def cold_rounds(
    rig: Rig, image: Path, strikes: int, strike: Callable[[int], int], *, in_a_round: int = 5
) -> Result:
    """Strike ``strikes`` times under 8 readers of cold trees, whose server is slow.

    ``strike``: from the service's pid to its successor's.
    """
    backend = rig.base / "backend.json"
    with RangeServer(image / "blobs", latency_ms=LATENCY_MS, mbps=MBPS, keep_seen=False) as server:
        table = {"addr": server.url, "path": "/blobs"}
        backend.write_text(json.dumps({"type": "http-proxy", "http-proxy": table}))
        done, reads, longest = _rounds(rig, image, backend, strikes, strike, in_a_round)
    log = (rig.root / "daemon.log").read_text()
    settled = sum(int(n) for n in re.findall(r"took over \d+ images, (\d+) requests", log))
    return Result(done, reads, longest, settled)


def _rounds(
    rig: Rig, image: Path, backend: Path, strikes: int, strike: Callable[[int], int], each: int
) -> tuple[int, int, float]:
    dice = random.Random(4)
    done = reads = 0
    longest = 0.0
    while done < strikes:
        mount = rig.mountpoint()
        rig.run("mount", image / "image.boot", mount, "--backend", backend, "--prefetch", "none")
        pid, _ = service(rig)
        with Load(mount, image / "expected.jsonl") as load:
            for _ in range(each):
                time.sleep(dice.uniform(0.0, 0.12))
                pid = strike(pid)
                done += 1
                time.sleep(dice.uniform(0.15, 0.7))
            reached = rig.status()
        assert load.wrong == [], rig.log()
        assert load.reads > 0
        assert reached["requests"]["denied"] == 0, rig.log()
        reads += load.reads
        longest = max(longest, load.longest_s)
        if rig.transport.startswith("fuse"):  # what is read ahead goes on without its reader
            deadline = time.monotonic() + PATIENCE_S
            while rig.status()["requests"]["waiting"] and time.monotonic() < deadline:
                time.sleep(0.02)
        assert rig.status()["requests"]["waiting"] == 0, "the journal is settled"
        rig.run("umount", mount)
        rig.run("stop")
        assert rig.processes() == []
        for path in (rig.root / "cache").iterdir():
            path.unlink()
    return done, reads, longest
