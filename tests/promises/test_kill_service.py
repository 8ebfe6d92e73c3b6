"""kill -9 of the service at random moments under 8 readers: a pause, never a byte, never EIO."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

from cold import PATIENCE_S, cold_rounds, service, successor
from rig import Rig, each_transport


@each_transport
def test_service_killed_under_readers(rig: Rig, golden: Path, rounds: int) -> None:
    def kill(pid: int) -> int:
        os.kill(pid, signal.SIGKILL)
        return successor(rig, pid)

    result = cold_rounds(rig, golden / "images" / "layers-zstd", rounds, kill)
    assert result.settled >= result.strikes // 5, "hardly a kill met a reader that waited"
    print(f"service killed {result}")


def test_a_lost_keeper_leaves_no_zombie(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "one-lz4"
    rig.mount(image / "image.boot", image / "blobs")
    for _ in range(3):
        pid, keeper = service(rig)
        os.kill(keeper, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_S
        while rig.status()["keeper_pid"] == keeper or zombies_of(pid):
            assert time.monotonic() < deadline, (zombies_of(pid), rig.log())
            time.sleep(0.02)


def zombies_of(pid: int) -> list[str]:
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                if "State:\tZ" in Path(f"/proc/{child}/status").read_text():
                    found.append(child)
    return found


def test_keeper_killed_now_and_then(rig: Rig, golden: Path, rounds: int) -> None:
    """Keeper or service, and the keeper of a service that is only starting.

    A new keeper holds everything, so the next death of the service is covered again.
    """
    dice = random.Random(8)

    def kill(pid: int) -> int:
        struck = dice.choice(["service", "keeper", "both in turn"])
        _, keeper = service(rig)
        if struck != "keeper":
            os.kill(pid, signal.SIGKILL)
            pid = successor(rig, pid)
        if struck != "service":
            time.sleep(dice.uniform(0.0, 0.3) if struck == "both in turn" else 0.0)
            os.kill(keeper, signal.SIGKILL)
            deadline = time.monotonic() + PATIENCE_S
            while rig.status()["keeper_pid"] == keeper:
                assert time.monotonic() < deadline, rig.log()
                time.sleep(0.02)
        assert service(rig)[0] == pid
        return pid

    result = cold_rounds(rig, golden / "images" / "layers-zstd", max(5, rounds // 3), kill)
    assert "holds everything again" in (rig.root / "daemon.log").read_text()
    assert "zeros" not in (rig.root / "daemon.log").read_text()
    print(f"keeper or service killed {result}")
