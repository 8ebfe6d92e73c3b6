"""The original nydusd as the benchmark runs it: over FUSE, its only way on this kernel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from cold_kit import Built

PATIENCE_S = 30.0


def find_nydusd() -> Path | None:
    """``NYDUS_REAL_DAEMON``, or a nydusd in PATH that is not ours."""
    named = os.environ.get("NYDUS_REAL_DAEMON")
    found = named or shutil.which("nydusd")
    if not found:
        return None
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
    return Path(found) if named or "Rustc" in said else None


class Nydusd:
    """One process a mount, started by ``mount``: its start is part of the time, as it is part of
    each container's start under nydus-snapshotter."""

    def __init__(self, program: Path, work: Path) -> None:
        self.program = program
        self.work = work
        self.mountpoint = work / "mnt"
        self._process: subprocess.Popen[bytes] | None = None

    def mount(self, built: Built, config: dict[str, Any], *, prefetch_all: bool) -> None:
        shutil.rmtree(self.work / "cache", ignore_errors=True)
        for path in (self.mountpoint, self.work / "cache"):
            path.mkdir(parents=True, exist_ok=True)
        document = {
            "device": {
                "backend": {"type": config["type"], "config": config[config["type"]]},
                "cache": {"type": "blobcache", "config": {"work_dir": str(self.work / "cache")}},
            },
            "mode": "direct",
            "digest_validate": False,
            "iostats_files": False,
            "enable_xattr": True,
            "fs_prefetch": {
                "enable": prefetch_all, "threads_count": 8, "merging_size": 1 << 20,
                "prefetch_all": prefetch_all,
            },
        }  # fmt: skip
        (self.work / "config.json").write_text(json.dumps(document))
        before = os.stat(self.mountpoint).st_dev
        self._process = subprocess.Popen(
            [self.program, "fuse", "--config", self.work / "config.json", "--bootstrap",
             built.bootstrap, "--mountpoint", self.mountpoint, "--apisock", self.work / "sock",
             "--log-level", "error", "--rlimit-nofile", "0"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until = time.monotonic() + PATIENCE_S
        while os.stat(self.mountpoint).st_dev == before:
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{self.program} does not mount {built.bootstrap}")
            time.sleep(0.002)

    def usage(self) -> tuple[float, int]:
        """(CPU seconds, peak bytes)."""
        assert self._process is not None
        proc = Path(f"/proc/{self._process.pid}")
        fields = (proc / "stat").read_text().rpartition(")")[2].split()
        lines = (proc / "status").read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM"))
        ticks = int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK"), int(peak.split()[1]) << 10

    def stop(self) -> None:
        subprocess.run(["umount", "-l", self.mountpoint], check=False, stderr=subprocess.DEVNULL)
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(2)
            except subprocess.TimeoutExpired:  # it may wait for its own mount
                self._process.kill()
                self._process.wait()
            self._process = None
        shutil.rmtree(self.work / "cache", ignore_errors=True)
