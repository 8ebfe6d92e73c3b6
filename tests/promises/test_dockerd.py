"""Docker 29 itself runs Nydus images lazily: its dockerd, an unmodified nydus-snapshotter, ours.

``scripts/peers dockerd containerd2`` builds it (minutes).  The snapshots that it makes are tried
without it in test_docker_snapshots.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cold_image
import pytest
from containerd import Stack, peer, running
from docker_engine import DOCKER

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no containers"),
    pytest.mark.long,
]
PATIENCE_S = 60.0
HOST_OF_FRONTS = "nydus_fscache.api.nydusd.host"


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cold_image.create(tmp_path_factory.mktemp("cold"))


@dataclass
class Engine:
    """dockerd over the containerd of a stack."""

    rig: Stack

    @property
    def socket(self) -> str:
        return f"unix://{self.rig.base}/d.sock"

    def start(self) -> None:
        base = self.rig.base
        self.rig.environment["DOCKER_MIN_API_VERSION"] = "1.24"  # Debian's client is old
        (base / "daemon.json").write_text("{}")
        self.rig.spawn(
            "dockerd",
            [
                str(peer("dockerd")), "--config-file", str(base / "daemon.json"),
                "--data-root", str(base / "d"), "--exec-root", str(base / "x"),
                "-p", str(base / "d.pid"), "-H", self.socket,
                "--containerd", str(self.rig.containerd_socket),
                "--storage-driver", "nydus", "--feature", "containerd-snapshotter=true",
                "--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-masq=false",
                "--default-ulimit", "nofile=20000:20000",
                "--seccomp-profile", "unconfined",  # that runc is built without libseccomp
            ],
        )  # fmt: skip
        end = time.monotonic() + PATIENCE_S
        while self("version", check=False).returncode:
            assert self.rig.processes["dockerd"].poll() is None, self.rig.logs()
            assert time.monotonic() < end, self.rig.logs()
            time.sleep(0.1)

    def command(self, *words: str) -> list[str]:
        return [DOCKER, "-H", self.socket, *words]

    def __call__(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.rig.run(*self.command(*words), check=check)

    def run(self, image: str, script: str) -> str:
        words = ("run", "--rm", "--network", "host", image, "/bin/sh", "-c", script)
        return self(*words).stdout


@contextlib.contextmanager
def engine(**options: object) -> Iterator[Engine]:
    """Over containerd 2 with its runc, as Docker comes with them: it asks for time namespaces."""
    peer("dockerd")
    with running(programs=peer("containerd2"), **options) as rig:
        made = Engine(rig)
        try:
            made.start()
            yield made
        finally:
            with contextlib.suppress(subprocess.SubprocessError, AssertionError):
                for container in made("ps", "-aq", check=False).stdout.split():
                    made("rm", "-f", container, check=False)
                made("image", "prune", "-af", check=False)
            rig.end("dockerd")


def fetched_layers(rig: Stack) -> set[str]:
    """Of the content that containerd holds for dockerd."""
    return set(rig.ctr("-n", "moby", "content", "ls", "-q").stdout.split())


def wait_until_nothing_is_left(rig: Stack) -> None:
    """Of the snapshotter's and ours; dockerd has a namespace of the network mounted."""
    left, end = rig.snapshotter_root / "snapshots", time.monotonic() + PATIENCE_S
    while True:
        mounts = [point for point in rig.mounts() if point.startswith(f"{rig.snapshotter_root}/")]
        if not mounts and not list(left.iterdir()):
            return
        assert time.monotonic() < end, f"{mounts} {list(left.iterdir())}\n{rig.logs()}"
        time.sleep(0.1)


def kill(rig: Stack, word: str) -> None:
    """The process of ours with this word in its command line."""
    for pid in rig.daemon_pids():
        with contextlib.suppress(OSError):
            if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
                return
    raise AssertionError(f"no process with {word}\n{rig.logs()}")


@pytest.mark.parametrize("mode", ["shared", "dedicated"])
def test_pull_run_restart_prune(cold: Path, mode: str) -> None:
    with engine(daemon_mode=mode) as docker:
        rig = docker.rig
        reference = rig.push(cold, "app:v1")
        blob = next((cold / "blobs").iterdir()).name
        docker("pull", reference)
        assert not any(blob in digest for digest in fetched_layers(rig)), "it is pulled lazily"
        said = docker.run(reference, "cat /etc/marked; echo new > /etc/new; cat /etc/new; ls /")
        assert said.split()[:2] == ["marked", "new"]
        digest = docker("image", "inspect", "-f", "{{index .RepoDigests 0}}", reference).stdout
        docker("create", "--name", "kept", "--network", "host", reference, "/bin/cat",
               "/etc/marked")  # fmt: skip
        for _ in range(2):  # its snapshots are still there, then dockerd knows them by their names
            assert docker("start", "-a", "kept").stdout == "marked\n"
            rig.end("dockerd")
            docker.start()
        docker("pull", digest.strip())  # by its digest, which it has
        docker("rm", "kept")
        docker("image", "prune", "-af")
        wait_until_nothing_is_left(rig)


def test_a_container_reads_on_through_kills(cold: Path) -> None:
    with engine() as docker:
        rig = docker.rig
        reference = rig.push(cold, "app:v1")
        docker("pull", reference)
        words = docker.command(
            "run", "--rm", "--network", "host", reference, "/bin/sh", "-c", cold_image.READ
        )
        reader = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            for word in ("--mountpoint", HOST_OF_FRONTS, "nydus_fscache.daemon.main", "keeper.py"):
                time.sleep(2)
                assert reader.poll() is None, reader.communicate()[0]
                kill(rig, word)
            said, _ = reader.communicate(timeout=180)
            assert said.strip() == f"read {cold_image.FILES}", f"{said}\n{rig.logs()}"
        finally:
            reader.kill()
            reader.communicate()
        assert docker.run(reference, "cat /etc/marked") == "marked\n"
