"""kill -9 of the service at random moments under 8 readers: a pause, never a byte, never EIO."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from cold import PATIENCE_S, cold_rounds, service, successor
from load import Load
from rig import Rig


def test_service_killed_under_readers(rig: Rig, golden: Path, rounds: int) -> None:
    def kill(pid: int) -> int:
        os.kill(pid, signal.SIGKILL)
        return successor(rig, pid)

    result = cold_rounds(rig, golden / "images" / "layers-zstd", rounds, kill)
    assert result.settled >= result.strikes // 5, "hardly a kill met a reader that waited"
    print(f"service killed {result}")


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
