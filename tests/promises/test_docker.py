"""Debian's Docker runs Nydus images by our graph driver plugin."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from servers import Pusher, bootstrap_layer, docker_registry, nydus_manifest
from trees import assert_tree

BIN = Path(sys.executable).parent
PATIENCE_S = 60.0
DOCKER = "/usr/bin/docker"  # Debian's: another's client may be too new for it
PYTHON = ("/usr/bin/python3.11", "-S", "-c")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no containers")


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


@pytest.fixture
def rig(golden: Path) -> Iterator[Docker]:
    for program in ("dockerd", DOCKER, "containerd", "runc"):
        if shutil.which(program) is None:
            pytest.skip(f"NO {program}: DOCKER IS NOT TESTED (scripts/setup --test)")
    base = Path(f"/var/tmp/nd{os.getpid()}-{time.monotonic_ns() % 1_000_000}")
    base.mkdir()
    try:
        with docker_registry(base) as host:
            made = Docker(base, host, golden / "images" / "layers-zstd" / "blobs")
            try:
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


def push_nydus(rig: Docker, golden: Path) -> str:
    """Its manifest lists the bootstrap alone: docker unpacks every layer that it lists."""
    boot = (golden / "images" / "layers-zstd" / "image.boot").read_bytes()
    with Pusher(rig.host, "py") as push:
        push.manifest("1", nydus_manifest(push, bootstrap_layer(boot), []))
    return f"{rig.host}/py:1"


def layer_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def file_of(name: str, mode: int = 0o644) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode = mode
    return member


def push_plain(rig: Docker) -> str:
    """Two layers; the second takes a file of the first away, and tries to lead out."""
    shell = file_of("bin/busybox", 0o755)
    first = layer_of((shell, Path("/bin/busybox").read_bytes()), (file_of("etc/gone"), b"x"))
    second = layer_of((file_of("etc/.wh.gone"), b""), (file_of("../../../etc/up"), b"up"))
    ids = [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in (first, second)]
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}}
    ).encode()
    kind = "application/vnd.oci.image"
    with Pusher(rig.host, "plain") as push:
        layers = [gzip.compress(tar, 1) for tar in (first, second)]
        push.manifest(
            "1",
            {
                "schemaVersion": 2, "mediaType": f"{kind}.manifest.v1+json",
                "config": {"mediaType": f"{kind}.config.v1+json", "size": len(config),
                           "digest": f"sha256:{push.blob(config)}"},
                "layers": [
                    {"mediaType": f"{kind}.layer.v1.tar+gzip", "size": len(data),
                     "digest": f"sha256:{push.blob(data)}"}
                    for data in layers
                ],
            },
        )  # fmt: skip
    return f"{rig.host}/plain:1"


def test_pull_run_commit_remove(rig: Docker, golden: Path) -> None:
    image = push_nydus(rig, golden)
    assert rig.docker("info", "-f", "{{.Driver}}").stdout.strip() == rig.name
    rig.docker("pull", image)
    assert rig.run(image, *PYTHON, "import sys; print(sys.version_info[0])") == "3\n"
    (line,) = [line for line in mounts(rig.base) if " - erofs " in line]
    assert_tree(Path(line.split()[4]), golden / "images" / "layers-zstd" / "expected.jsonl")
    script = "import os; os.remove('/etc/passwd'); open('/new', 'w').write('n')"
    rig.docker("run", "--name", "writer", "--network", "host", image, *PYTHON, script)
    changed = set(rig.docker("diff", "writer").stdout.splitlines())
    assert {"D /etc/passwd", "A /new", "C /etc"} <= changed
    rig.docker("commit", "writer", "changed:1")
    script = "import os; print(os.path.exists('/etc/passwd'), open('/new').read())"
    assert rig.run("changed:1", *PYTHON, script) == "False n\n"
    assert rig.run(image, *PYTHON, "print(open('/etc/passwd').read(0) == '')") == "True\n"
    rig.docker("rm", "writer")
    rig.docker("rmi", "changed:1", image)
    assert mounts(rig.base / "data") == []
    layers = rig.base / "data" / rig.name
    assert [path.name for path in layers.iterdir() if path.name != "l"] == []
    assert list((layers / "l").iterdir()) == []


def test_an_ordinary_image_is_an_overlay_of_directories(rig: Docker) -> None:
    image = push_plain(rig)
    rig.docker("pull", image)
    assert rig.run(image, "/bin/busybox", "ls", "/etc").split() == ["hostname", "hosts",
        "mtab", "resolv.conf", "up"]  # fmt: skip
    assert not Path("/etc/up").exists()
    rig.docker("rmi", image)


def test_plugin_and_docker_start_again(rig: Docker, golden: Path) -> None:
    image = push_nydus(rig, golden)
    rig.docker("pull", image)
    rig.docker("create", "--name", "kept", "--network", "host", image, *PYTHON, "print(1)")
    rig.end("plugin", signal.SIGKILL)
    rig.start_plugin()
    rig.end("dockerd")
    rig.start_docker()
    assert rig.docker("start", "-a", "kept").stdout == "1\n"
    assert rig.run(image, *PYTHON, "print(2)") == "2\n"
    rig.docker("rm", "kept")
    rig.docker("rmi", image)
    assert mounts(rig.base / "data") == []
