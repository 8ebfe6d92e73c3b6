"""Debian's Podman beside our store: configuration, storage and state below one directory.

Nothing of the machine's own Podman is read or written.  ``user``: also as somebody without
privileges, with sub-ids (rootless).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from containerd import Stack
from oci_kit import Layer, push_image
from servers import Pusher, docker_registry

BIN = Path(sys.executable).parent
PYTHON = ("/usr/bin/python3.11", "-S", "-c")
PATIENCE_S = 60.0
COMMAND_S = 120.0


def _mounts(below: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    return [p for p in points if p == str(below) or p.startswith(f"{below}/")]


def _processes(base: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"{base}/".encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
    return found


@dataclass
class Podman:
    """``uid``: 0, or of the user as whom podman runs."""

    base: Path
    host: str
    uid: int = 0
    log: Path = field(init=False)
    process: subprocess.Popen[bytes] | None = None
    environment_of_store: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gid = pwd.getpwuid(self.uid).pw_gid
        self.store, self.root = self.base / "store", self.base / "root"
        self.log = self.base / "store.log"
        self.home = self.base / f"home-{self.uid}"
        for name in ("", "run", "tmp"):
            (self.home / name).mkdir(exist_ok=True)
            os.chown(self.home / name, self.uid, self.gid)
        config = self.home / "config"
        config.mkdir(exist_ok=True)
        (config / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self.home}/graph"\n'
            f'runroot = "{self.home}/run/storage"\n'
            f'[storage.options]\nadditionallayerstores = ["{self.store}/names:ref"]\n'
        )
        (config / "containers.conf").write_text(
            '[containers]\nnetns = "host"\nutsns = "host"\n'
            f'ipcns = "{"private" if self.uid else "host"}"\n'
            'default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]\n'
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\n'
            f'tmp_dir = "{self.home}/run/libpod"\n'
        )
        (config / "registries.conf").write_text(
            f'[[registry]]\nlocation = "{self.host}"\ninsecure = true\n'
        )
        (config / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.home), "TMPDIR": str(self.home / "tmp"),
            "XDG_RUNTIME_DIR": str(self.home / "run"),
            "CONTAINERS_STORAGE_CONF": str(config / "storage.conf"),
            "CONTAINERS_CONF": str(config / "containers.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(config / "registries.conf"),
        }  # fmt: skip
        self.policy = config / "policy.json"

    # -- the store

    def start_store(self, *words: str) -> None:
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [BIN / "nydus-fscache", "store", self.store, "--root", self.root, *words],
                stdout=out, stderr=out, start_new_session=True,
                env={**os.environ, **self.environment_of_store},
            )  # fmt: skip
        self.wait_until_served()

    def wait_until_served(self) -> None:
        end = time.monotonic() + PATIENCE_S
        while "serving" not in self.said():
            assert self.process is not None
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.05)

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def server(self) -> int:
        """The process of the store that answers."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return int(children.split()[0])

    def stop_store(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    # -- podman

    def podman(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = self.run(self.argv(*words))
        if check and done.returncode:
            said = f"{done.stdout}{done.stderr}"
            raise AssertionError(f"{words}: {done.returncode}\n{said}\n{self.said()}")
        return done

    def argv(self, *words: str) -> list[str]:
        policy = ["--signature-policy", str(self.policy)] if words[0] == "pull" else []
        argv = ["podman", words[0], *policy, *words[1:]]
        if not self.uid:
            return argv
        return ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups", *argv]

    def run(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=COMMAND_S,
            env=self.environment, cwd=self.home,
        )  # fmt: skip

    def erofs(self) -> list[Path]:
        """Our mounts that are to be seen now."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        own = [line for line in lines if f" {self.store}/" in line and " - erofs " in line]
        return [Path(line.split()[4]) for line in own]

    def end(self) -> None:
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            self.run(self.argv("rm", "-fa", "-t", "0"))
        if self.uid:
            with contextlib.suppress(subprocess.SubprocessError, OSError):
                self.run(self.argv("system", "migrate"))
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()


def push(rig: Podman, image: Path) -> str:
    return Stack(rig.base, rig.host, Path(), Path()).push(image)


def plain_image(host: str, repo: str) -> str:
    """An ordinary one, with a shell that is on the host."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add("/bin/busybox", "bin/busybox")
    with Pusher(host, repo) as push:
        push_image(push, "1", [Layer(out.getvalue())])
    return f"{host}/{repo}:1"


def uses(rig: Podman) -> int:
    document = json.loads((rig.store / "state" / "uses.json").read_text())
    return sum(use["count"] for use in document["uses"])


def wait_for(what: Callable[[], bool], why: Callable[[], str]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end, why()
        time.sleep(0.02)


def new_base() -> Path:
    return Path(f"/var/tmp/np{os.getpid()}-{time.monotonic_ns() % 1_000_000}")


@contextlib.contextmanager
def podman(base: Path) -> Iterator[Podman]:
    """``base``: a new directory on ext4, xfs or btrfs; removed at the end."""
    for program in ("podman", "conmon", "runc"):
        if shutil.which(program) is None:
            pytest.skip(f"NO {program}: PODMAN IS NOT TESTED (scripts/setup --test)")
    base.mkdir(mode=0o755, parents=True)
    made: Podman | None = None
    try:
        with docker_registry(base) as host:
            made = Podman(base, host)
            try:
                yield made
            finally:
                made.end()
    finally:
        subprocess.run(
            [BIN / "nydus-fscache", "stop", "--root", base / "root"],
            check=False, capture_output=True, timeout=COMMAND_S,
        )  # fmt: skip
        for pid in _processes(base):  # of a store or a daemon that did not end as it should
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for point in reversed(_mounts(base)):
            subprocess.run(["umount", "-l", point], check=False, capture_output=True)
        shutil.rmtree(base, ignore_errors=True)
