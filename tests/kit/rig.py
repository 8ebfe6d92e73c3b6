"""Runs the real daemon as a user does, by its command line, and cleans up whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CLI = [sys.executable, "-m", "nydus_fscache"]
COMMAND_S = 60


def mounts_below(directory: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [p for p in points if p == str(directory) or p.startswith(f"{directory}/")]


def read_errno(path: Path) -> int:
    """What reading the whole file ends with; 0 when it can be read."""
    try:
        path.read_bytes()
    except OSError as e:
        return e.errno or -1
    return 0


def regular_files(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file() and not p.is_symlink())


@dataclass
class Rig:
    """A root of its own below ``base``; every command runs against it."""

    base: Path
    environment: dict[str, str] = field(default_factory=dict)
    prefix: list[str] = field(default_factory=list)  # words before our command line
    transport: str = os.environ.get("NYDUS_TEST_TRANSPORT", "")  # of all mounts; empty: "auto"

    def __post_init__(self) -> None:
        self.root = self.base / "root"
        self._started: list[subprocess.Popen[bytes]] = []

    def run(self, *args: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        words = self._words(args)
        done = subprocess.run(
            [*self.prefix, *CLI, words[0], "--root", str(self.root), *words[1:]],
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            env={**os.environ, **self.environment},
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{words}: {done.returncode}\n{done.stderr}\n{self.log()}")
        return done

    def _words(self, args: Sequence[str | Path]) -> list[str]:
        words = [str(a) for a in args]
        if words[0] == "mount" and self.transport and "--transport" not in words:
            words += ["--transport", self.transport]
        return words

    def start(self, *args: str | Path) -> subprocess.Popen[bytes]:
        """The same, without waiting for its end."""
        words = self._words(args)
        process = subprocess.Popen(
            [*self.prefix, *CLI, words[0], "--root", str(self.root), *words[1:]],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **self.environment},
        )
        self._started.append(process)
        return process

    def wait_until_ready(self) -> None:
        """After ``start("serve")``."""
        deadline = time.monotonic() + COMMAND_S
        while self.run("status", check=False).returncode != 0:
            assert time.monotonic() < deadline, self.log()

    def mountpoint(self, name: str = "m") -> Path:
        path = self.base / name
        path.mkdir(exist_ok=True)
        return path

    def mount(self, bootstrap: Path, blob_dir: Path, name: str = "m", *extra: str) -> Path:
        path = self.mountpoint(name)
        self.run("mount", bootstrap, path, "--blob-dir", blob_dir, *extra)
        return path

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return document

    def fetched(self) -> int:
        return sum(blob["fetched"] for blob in self.status()["blobs"])

    def requests(self) -> int:
        return sum(blob["requests"] for blob in self.status()["blobs"])

    def leftovers(self) -> list[str]:
        """What should not be there once the daemon has ended."""
        kept = {"lock", "state.json", "daemon.log", "events.jsonl", "cache", "cachefiles", "images"}
        found = [p.name for p in self.root.iterdir() if p.name not in kept]
        found += [str(p) for p in self.root.rglob(".*")]
        return found + mounts_below(self.base) + [f"pid {pid}" for pid in self.processes()]

    def wait_for_end(self) -> None:
        deadline = time.monotonic() + COMMAND_S
        while self.processes():
            if time.monotonic() > deadline:
                raise AssertionError(f"the daemon does not end\n{self.log()}")
            time.sleep(0.02)

    def log(self) -> str:
        """The end of the daemon's log; a file system that has stopped gives none."""
        try:
            return (self.root / "daemon.log").read_text()[-8000:]
        except OSError as e:
            return "" if isinstance(e, FileNotFoundError) else f"no log: {e.strerror}"

    def processes(self) -> list[int]:
        """Keepers and services of this root."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit():
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    if b"nydus_fscache.daemon.main" in words and str(self.root).encode() in words:
                        found.append(int(entry.name))
        return found

    def wait_until_mounted(self, point: Path) -> None:
        """A mount that is made again reads through the service: it comes a moment after that."""
        deadline = time.monotonic() + COMMAND_S
        while str(point) not in {m["mountpoint"] for m in self.status()["mounts"] if m["mounted"]}:
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def kill_at_once(self) -> None:
        """SIGKILL for everything of ours as if in one moment: stopped before, since of two that are
        killed one after the other the second starts the first again.  Returns when all have
        closed their files."""
        stopped: set[int] = set()
        while new := ({*self.processes()} | _children_of(stopped)) - stopped:
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            stopped |= new
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + COMMAND_S
        while alive := [pid for pid in stopped if _has_threads(pid)]:
            assert time.monotonic() < deadline, f"{alive} cannot be killed"
            time.sleep(0.01)

    def clean(self) -> None:
        """For the end of a test that may have failed."""
        self.kill()
        for process in self._started:
            process.kill()
            process.wait()
        shutil.rmtree(self.base, ignore_errors=True)

    def kill(self) -> None:
        """End everything, by force."""
        with contextlib.suppress(Exception):
            self.run("stop", check=False)
        for point in reversed(mounts_below(self.base)):
            subprocess.run(["umount", "-l", point], check=False, capture_output=True)
        deadline = time.monotonic() + 10
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise AssertionError(f"{pids} cannot be killed")
            time.sleep(0.02)


def _stat_of(pid: int) -> list[str]:
    """State, parent, ... of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _children_of(parents: set[int]) -> set[int]:
    pids = {int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()} if parents else ()
    return {pid for pid in pids if int((_stat_of(pid) or "00")[1]) in parents}


def _has_threads(pid: int) -> bool:
    """Besides its first one, which may be a zombie long before the others close their files."""
    with contextlib.suppress(OSError):
        return (_stat_of(pid) or "Z")[0] not in "ZX" or len(os.listdir(f"/proc/{pid}/task")) > 1
    return False


FUSE = ["fuse-file", "fuse-loop", "fuse-tree"]
each_transport = pytest.mark.parametrize("rig", ["", *FUSE], indirect=True, ids=["auto", *FUSE])


@pytest.fixture
def rig(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    """With a parameter (``each_transport``): the transport of its mounts."""
    rig = Rig(tmp_path)
    if transport := getattr(request, "param", ""):
        rig.transport = transport
        found = json.loads(rig.run("doctor", "--json", check=False).stdout)["transports"][transport]
        if not found["ok"]:
            pytest.skip(f"NO TRANSPORT {transport} HERE: {found['detail']}")
    try:
        yield rig
    finally:
        rig.clean()
