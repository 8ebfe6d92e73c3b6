"""Debian's Docker beside our graph driver plugin: all state below one directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from servers import docker_registry

BIN = Path(sys.executable).parent
PATIENCE_S = 60.0
DOCKER = "/usr/bin/docker"  # Debian's: another's client may be too new for it


def mounts(below: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if line.split()[4].startswith(f"{below}/")]


@dataclass
class Docker:
    base: Path
    host: str
    blobs: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = f"nf{os.getpid()}"
        self.plugin = Path(f"/run/docker/plugins/{self.name}.sock")
        self.socket = self.base / "d.sock"

    def start_plugin(self) -> None:
        self._spawn(
            "plugin", str(BIN / "nydus-fscache"), "graphdriver", "--socket", str(self.plugin),
            "--blob-dir", str(self.blobs), "--root", str(self.base / "root"),
        )  # fmt: skip
        self._wait_for(self.plugin, "plugin")

    def start_docker(self) -> None:
        (self.base / "daemon.json").write_text("{}")
        self._spawn(
            "dockerd", "dockerd", "--experimental", "-s", self.name,
            "--config-file", str(self.base / "daemon.json"),
            "--data-root", str(self.base / "data"), "--exec-root", str(self.base / "x"),
            "-p", str(self.base / "d.pid"), "-H", f"unix://{self.socket}",
            "--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-masq=false",
            "--default-ulimit", "nofile=20000:20000",
        )  # fmt: skip
        end = time.monotonic() + PATIENCE_S
        while self.docker("version", check=False).returncode:
            assert self.processes["dockerd"].poll() is None, self.logs()
            assert time.monotonic() < end, self.logs()
            time.sleep(0.1)

    def docker(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [DOCKER, "-H", f"unix://{self.socket}", *words],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{words}: {done.stdout}{done.stderr}\n{self.logs()}")
        return done

    def run(self, image: str, *argv: str) -> str:
        return self.docker("run", "--rm", "--network", "host", image, *argv).stdout

    def logs(self) -> str:
        return "\n".join(log.read_text(errors="replace")[-4000:] for log in self.base.glob("*.log"))

    def end(self, name: str, number: int = signal.SIGTERM) -> None:
        process = self.processes.pop(name, None)
        if process is not None:
            process.send_signal(number)
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _spawn(self, name: str, *argv: str) -> None:
        with (self.base / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def _wait_for(self, path: Path, name: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not path.exists():
            assert self.processes[name].poll() is None, self.logs()
            assert time.monotonic() < end, self.logs()
            time.sleep(0.05)


@contextlib.contextmanager
def docker_engine(blobs: Path, *, start: bool = True) -> Iterator[Docker]:
    """``start``: plugin and dockerd run."""
    for program in ("dockerd", DOCKER, "containerd", "runc"):
        if shutil.which(program) is None:
            pytest.skip(f"NO {program}: DOCKER IS NOT TESTED (scripts/setup --test)")
    base = Path(f"/var/tmp/nd{os.getpid()}-{time.monotonic_ns() % 1_000_000}")
    base.mkdir()
    try:
        with docker_registry(base) as host:
            made = Docker(base, host, blobs)
            try:
                if start:
                    made.start_plugin()
                    made.start_docker()
                yield made
            finally:
                with contextlib.suppress(subprocess.SubprocessError, AssertionError):
                    for container in made.docker("ps", "-aq", check=False).stdout.split():
                        made.docker("rm", "-f", container, check=False)
                made.end("dockerd")
                made.end("plugin")
                made.plugin.unlink(missing_ok=True)
    finally:
        subprocess.run(
            [BIN / "nydus-fscache", "stop", "--root", base / "root"],
            check=False, capture_output=True, timeout=60,
        )  # fmt: skip
        for line in reversed(mounts(base)):
            subprocess.run(["umount", "-l", line.split()[4]], check=False, capture_output=True)
        shutil.rmtree(base, ignore_errors=True)
