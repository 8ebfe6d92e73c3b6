"""Parts of the benchmark of cost against size: images, and a node of its own."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cold_kit as kit

FILES_EACH = 1000  # of a directory
PATIENCE_S = 120.0
Row = dict[str, Any]


def make_image(work: Path, files: int) -> tuple[Path, Path]:
    """(bootstrap, directory of blobs) of an image of so many small files."""
    boot, blobs = work / f"boot-{files}", work / f"blobs-{files}"
    if boot.exists():
        return boot, blobs
    blobs.mkdir()
    build = subprocess.Popen(
        [*kit.BUILD, "create", "-t", "tar-rafs", "-B", str(boot), "-D", str(blobs), "-"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=kit.REPO,
    )  # fmt: skip
    with tarfile.open(fileobj=build.stdin, mode="w|") as tar:
        for number in range(files):
            directory = f"d{number // FILES_EACH:05}"
            if number % FILES_EACH == 0:
                info = tarfile.TarInfo(directory)
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            data = b"file %d\n" % number
            info = tarfile.TarInfo(f"{directory}/f{number % FILES_EACH:03}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert build.stdin is not None
    build.stdin.close()
    if build.wait():
        raise SystemExit("scale: the image was not built")
    return boot, blobs


class Node:
    """A daemon of a root of its own."""

    def __init__(self, work: Path) -> None:
        self.daemon = kit.Daemon(work / "root")
        self.work = work

    def __enter__(self) -> Node:
        self.daemon.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.daemon.stop()
        shutil.rmtree(self.daemon.root, ignore_errors=True)

    def mount(self, boot: Path, blobs: Path, at: Path) -> None:
        self.mount_from(boot, {"type": "localfs", "localfs": {"dir": str(blobs)}}, at)

    def mount_from(self, boot: Path, backend: Row, at: Path) -> None:
        at.mkdir(exist_ok=True)
        self.daemon.client.call(
            "POST", "/v1/mounts",
            {"bootstrap": str(boot), "backend": backend, "prefetch": "none",
             "mountpoint": str(at), "transport": "auto"},
        )  # fmt: skip

    def resident(self) -> float:
        lines = Path(f"/proc/{self.daemon.status()['pid']}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024

    def cost(self, work: Callable[[], object]) -> Row:
        """Of ``work``: seconds, CPU seconds and memory of the service."""
        before, base = self.daemon.usage()[0], self.resident()
        seconds = kit.timed(work)
        return {
            "seconds": seconds,
            "cpu_s": self.daemon.usage()[0] - before,
            "memory_mb": self.resident() - base,
        }

    def take_over(self, mounts: int) -> float:
        """Seconds from a kill until a successor has all mounts."""
        killed = self.daemon.status()["pid"]
        os.kill(killed, signal.SIGKILL)
        began = time.monotonic()
        while time.monotonic() - began < PATIENCE_S:
            with contextlib.suppress(Exception):  # nobody answers yet
                status = self.daemon.status()
                if status["pid"] != killed and len(status["mounts"]) >= mounts:
                    break
            time.sleep(0.01)
        return time.monotonic() - began
