"""The original nydusd beside ours, each started as nydus-snapshotter starts it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

OURS = Path(sys.executable).with_name("nydusd")
START_S = 60.0
Answer = tuple[int, Any]


def original() -> Path:
    """``NYDUS_REAL_DAEMON``, or what ``scripts/peers nydus`` built; skips loudly without."""
    named = os.environ.get("NYDUS_REAL_DAEMON")
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [root / "scripts" / "peers", "--dir"], capture_output=True, text=True, check=True
    )
    found = Path(named or f"{done.stdout.strip()}/nydusd")
    if not os.access(found, os.X_OK):
        pytest.skip(
            "NO ORIGINAL nydusd: NOT COMPARED WITH IT; run scripts/peers nydus, or set "
            "NYDUS_REAL_DAEMON"
        )
    return found


class Unix(http.client.HTTPConnection):
    """HTTP to the API socket at ``path``."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self._path))


def ask(api: Path, method: str, target: str, body: Any = None) -> Answer:
    """Status, and the document or text; ``body``: bytes, a document, or None."""
    connection = Unix(api)
    try:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, target, data)
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    try:
        return answer.status, json.loads(text) if text else None
    except ValueError:
        return answer.status, text.decode()


@dataclass
class Daemon:
    """``base``: what is its own; ``point``: where images appear; ``cache``: its ``work_dir``."""

    base: Path
    process: subprocess.Popen[bytes]

    @property
    def api(self) -> Path:
        return self.base / "api.sock"

    @property
    def point(self) -> Path:
        return self.base / "mnt"

    @property
    def cache(self) -> Path:
        return self.base / "cache"

    def ask(self, method: str, target: str, body: Any = None) -> Answer:
        return ask(self.api, method, target, body)

    def send(self, data: bytes, patience_s: float = 1.0) -> bytes:
        """Bytes as they are; the answer until it is complete, or silence."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(patience_s)
            connection.connect(str(self.api))
            answer = b""
            with contextlib.suppress(OSError):
                connection.sendall(data)
                while part := connection.recv(1 << 16):
                    answer += part
            return answer

    def log(self) -> str:
        return (self.base / "log").read_text(errors="replace")


def environment(base: Path) -> dict[str, str]:
    """Of a daemon in ``base``, unless a root is set already."""
    return {"NYDUS_FSCACHE_ROOT": str(base / "root"), **os.environ}


@contextlib.contextmanager
def started(program: Path, base: Path, *words: str, answers: bool = True) -> Iterator[Daemon]:
    """``nydusd fuse``; ``base``: a directory that is removed at the end.  ``words``: more of the
    command line; ``answers``: wait until it does."""
    for name in ("mnt", "cache"):
        (base / name).mkdir(parents=True)
    with (base / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program, "fuse", "--mountpoint", base / "mnt", "--apisock", base / "api.sock",
                "--log-level", "info", "--rlimit-nofile", "0", *words,
            ],
            stdout=log, stderr=log, env=environment(base),
        )  # fmt: skip
    made = Daemon(base, process)
    try:
        deadline = time.monotonic() + START_S
        while answers and not _answers(made):
            assert process.poll() is None, made.log()
            assert time.monotonic() < deadline, made.log()
            time.sleep(0.01)
        yield made
    finally:
        _end(made)


def _answers(daemon: Daemon) -> bool:
    with contextlib.suppress(OSError):
        return daemon.ask("GET", "/api/v1/daemon")[0] == 200
    return False


def _end(daemon: Daemon) -> None:
    """Whatever state a test left it in."""
    daemon.process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        daemon.process.wait(30)
    daemon.process.kill()
    daemon.process.wait()
    end_all(daemon.base)
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines if line.split()[4].startswith(f"{daemon.base}/")]
    for point in reversed(points):
        subprocess.run(["umount", "-l", point], check=False, capture_output=True)
    shutil.rmtree(daemon.base, ignore_errors=True)


def end_all(base: Path) -> None:
    """Until none is left: a keeper may just have started a service."""
    end = time.monotonic() + START_S
    while (pids := named(base)) and time.monotonic() < end:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def named(base: Path) -> list[int]:
    """Processes with this directory in their command line: keeper, service, host of fronts."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if f"{base}/".encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found
