"""The real stack around a ``nydusd``: Debian's containerd and runc, nydus-snapshotter, a registry.

All state is below one short directory; system paths that containerd uses regardless
(/run/containerd) are left as they were.  ``scripts/peers`` builds what Debian lacks.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from servers import Pusher, bootstrap_layer, docker_registry, nydus_manifest

import rafs_v6

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0
PAUSE = "pause:latest"  # of pods
# program -> what builds it, where it has another name
_BUILDS = {
    "containerd-nydus-grpc": "snapshotter", "buildkitd": "buildkit", "buildctl": "buildkit",
    "podman5": "podman",
}  # fmt: skip
# built in any run of all tests; of the others that takes what is there, and --long builds them
_BUILT = {"snapshotter", "rpull", "cri"}
_NETWORK = """#!/bin/sh
case "$CNI_COMMAND" in
VERSION) echo '{"cniVersion": "0.4.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0"]}' ;;
ADD) printf '{"cniVersion": "0.4.0", "interfaces": [{"name": "%s", "sandbox": "%s"}], "ips": [
{"version": "4", "address": "10.1.0.2/24", "interface": 0}]}' "$CNI_IFNAME" "$CNI_NETNS" ;;
esac
"""


def peer(name: str) -> Path:
    """A program that scripts/peers builds; skips the test, loudly, when it cannot be had."""
    where = subprocess.run(
        [ROOT / "scripts" / "peers", "--dir"], capture_output=True, text=True, check=True
    )
    program = Path(where.stdout.strip()) / name
    build = _BUILDS.get(name, name)
    if not (program.exists() or build in _BUILT or os.environ.get("NYDUS_TEST_LONG")):
        pytest.skip(f"NO {name}: IT IS NOT TESTED WITH US: scripts/peers {build} builds it")
    done = subprocess.run(
        [ROOT / "scripts" / "peers", build], capture_output=True, text=True, check=False
    )
    if done.returncode == 77:
        pytest.skip(f"NO {name}: THE CONTAINERD STACK IS NOT TESTED: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return program


@dataclass
class Stack:
    """``nydusd``: the program under test, as one path."""

    base: Path
    host: str
    nydusd: Path
    nydus_image: Path
    daemon_mode: str = "shared"
    recover_policy: str = "restart"
    fs_driver: str = "fusedev"
    prefetch: bool = False
    cri: bool = False  # with the plugin that kubelets talk to
    experimental: tuple[str, ...] = ()  # of the snapshotter's settings, to be switched on
    programs: Path | None = None  # containerd 2 with its shim and runc, instead of Debian's
    environment: dict[str, str] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def containerd_socket(self) -> Path:
        return self.base / "c.sock"

    @property
    def system_socket(self) -> Path:
        return self.base / "sys.sock"

    @property
    def snapshotter_root(self) -> Path:
        return self.base / "sn"

    def start(self) -> None:
        self.start_snapshotter()
        self.start_containerd()

    def start_snapshotter(self) -> None:
        config = {
            "device": {
                "backend": {
                    "type": "registry",
                    "config": {
                        "scheme": "http", "skip_verify": True, "timeout": 5,
                        "connect_timeout": 5, "retry_limit": 2,
                    },
                },
                "cache": {"type": "blobcache", "config": {"work_dir": "cache"}},
            },
            "mode": "direct",
            "digest_validate": False,
            "enable_xattr": True,
            "fs_prefetch": {
                "enable": self.prefetch, "threads_count": 2, "merging_size": 131072,
            },
        }  # fmt: skip
        (self.base / "nydusd.json").write_text(json.dumps(config))
        settings = self.base / "sn.toml"
        settings.write_text(
            f"""version = 1
root = "{self.snapshotter_root}"
address = "{self.base}/sn.sock"
daemon_mode = "{self.daemon_mode}"
cleanup_on_close = false
[system]
enable = true
address = "{self.system_socket}"
[daemon]
nydusd_config = "{self.base}/nydusd.json"
nydusd_path = "{self.nydusd}"
nydusimage_path = "{self.nydus_image}"
fs_driver = "{self.fs_driver}"
recover_policy = "{self.recover_policy}"
[cgroup]
enable = false
[log]
log_to_stdout = true
level = "debug"
[metrics]
address = ""
[experimental]
{chr(10).join(f"{name} = true" for name in self.experimental)}
"""
        )
        program = peer("containerd-nydus-grpc")
        self.spawn("snapshotter", [str(program), "--config", str(settings)])
        self._wait_for(self.base / "sn.sock", "snapshotter")
        if "containerd" not in self.processes:
            return
        end = time.monotonic() + PATIENCE_S
        # containerd's client tries again after a pause, and repeats its last error until then
        while self.ctr("snapshots", "--snapshotter", "nydus", "ls", check=False).returncode:
            assert time.monotonic() < end, f"containerd finds no snapshotter\n{self.logs()}"
            time.sleep(0.2)

    def start_containerd(self) -> None:
        disabled = [
            *(() if self.cri else ("io.containerd.grpc.v1.cri",)),
            "io.containerd.snapshotter.v1.btrfs",
            "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs",
            "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt",
            "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
        ]  # fmt: skip
        settings = self.base / "c.toml"
        settings.write_text(
            f"""version = {2 if self.programs is None else 3}
root = "{self.base}/c"
state = "{self.base}/cs"
disabled_plugins = {json.dumps(disabled)}
[grpc]
  address = "{self.containerd_socket}"
[ttrpc]
  address = "{self.containerd_socket}.ttrpc"
[proxy_plugins.nydus]
  type = "snapshot"
  address = "{self.base}/sn.sock"
{'  capabilities = ["remap-ids"]' if self.programs else ""}
{self._cri_settings() if self.cri else ""}
"""
        )
        program = "containerd" if self.programs is None else str(self.programs / "containerd")
        if self.programs is not None:  # where it looks for its shim
            self.environment["PATH"] = f"{self.programs}:{os.environ['PATH']}"
        self.spawn("containerd", [program, "-c", str(settings)])
        self._wait_for(self.containerd_socket, "containerd")

    def _cri_settings(self) -> str:
        hosts = self.base / "certs.d" / self.host
        hosts.mkdir(parents=True, exist_ok=True)
        (hosts / "hosts.toml").write_text(
            f'server = "http://{self.host}"\n[host."http://{self.host}"]\n'
            '  capabilities = ["pull", "resolve"]\n'
        )
        self._make_network()
        if self.programs is not None:
            images, runtime = (f'plugins."io.containerd.cri.v1.{n}"' for n in ("images", "runtime"))
            return f"""
[{images}]
  snapshotter = "nydus"
  disable_snapshot_annotations = false
  [{images}.pinned_images]
    sandbox = "{self.host}/{PAUSE}"
  [{images}.registry]
    config_path = "{self.base}/certs.d"
[{runtime}]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [{runtime}.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [{runtime}.cni]
    bin_dir = "{self.base}/cni"
    conf_dir = "{self.base}/cni"
"""
        plugin = 'plugins."io.containerd.grpc.v1.cri"'
        return f"""
[{plugin}]
  sandbox_image = "{self.host}/{PAUSE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [{plugin}.containerd]
    snapshotter = "nydus"
    disable_snapshot_annotations = false
  [{plugin}.registry]
    config_path = "{self.base}/certs.d"
  [{plugin}.cni]
    bin_dir = "{self.base}/cni"
    conf_dir = "{self.base}/cni"
"""

    def _make_network(self) -> None:
        """Of pods that have one of their own: it is said to be there, and no test uses it."""
        directory = self.base / "cni"
        directory.mkdir(exist_ok=True)
        for name in ("nothing", "loopback"):
            (directory / name).write_text(_NETWORK)
            (directory / name).chmod(0o755)
        plugins = {"cniVersion": "0.4.0", "name": "none", "plugins": [{"type": "nothing"}]}
        (directory / "none.conflist").write_text(json.dumps(plugins))

    def push(self, image: Path, name: str = "", command: Sequence[str] = ()) -> str:
        """An image (image.boot and blobs/); returns its reference.  ``name``: with its tag.

        Layers go in the order of the device slots.  Of a zran image they are the blobs with the
        metadata; the layers that these refer to are pushed beside them.
        """
        boot = image / "image.boot"
        blobs = rafs_v6.Bootstrap.from_file(boot).blobs
        order = [blob.meta_blob_id if blob.is_separate else blob.blob_id for blob in blobs]
        contents = [(image / "blobs" / name).read_bytes() for name in order]
        repository, _, tag = (name or f"{image.name}:latest").partition(":")
        with Pusher(self.host, repository) as push:
            for blob in blobs:
                if blob.is_separate:
                    push.blob((image / "blobs" / blob.blob_id).read_bytes())
            layer = bootstrap_layer(boot.read_bytes())
            push.manifest(tag, nydus_manifest(push, layer, contents, command))
        return f"{self.host}/{repository}:{tag}"

    def pull(self, reference: str) -> None:
        self.run(
            str(peer("rpull")), "-a", str(self.containerd_socket), "-s", "nydus", reference
        )

    def ctr(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("ctr", "-a", str(self.containerd_socket), *words, check=check)

    def run_container(
        self, reference: str, name: str, *argv: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return self.ctr(
            "run", "--rm", "--snapshotter", "nydus", reference, name, *argv, check=check
        )

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, timeout=PATIENCE_S * 2
        )
        if check and done.returncode:
            said = f"{done.stdout}{done.stderr}"
            raise AssertionError(f"{argv}: {done.returncode}\n{said}\n{self.logs()}")
        return done

    def logs(self, most: int = 6000) -> str:
        return "\n".join(
            f"--- {log.name}\n{log.read_text(errors='replace')[-most:]}"
            for log in sorted(self.base.glob("*.log"))
        )

    def mounts(self) -> list[str]:
        """Mounts below this rig, from the kernel's table."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        points = [line.split()[4] for line in lines]
        return [point for point in points if point.startswith(f"{self.base}/")]

    def daemon_pids(self) -> list[int]:
        """Processes, of whatever name, that name this rig in their command line."""
        own = {process.pid for process in self.processes.values()}
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) in own:
                continue
            with contextlib.suppress(OSError):
                if str(self.base).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    def end(self, name: str, number: int = signal.SIGTERM) -> None:
        process = self.processes.pop(name, None)
        if process is not None:
            process.send_signal(number)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def stop(self) -> None:
        """End all, and take away what is left, whatever state a test left it in."""
        with contextlib.suppress(subprocess.SubprocessError, AssertionError, OSError):
            for task in self.ctr("tasks", "ls", "-q", check=False).stdout.split():
                self.ctr("tasks", "kill", "-s", "9", task, check=False)
                self.ctr("tasks", "rm", "-f", task, check=False)
            for container in self.ctr("containers", "ls", "-q", check=False).stdout.split():
                self.ctr("containers", "rm", container, check=False)
            for image in self.ctr("images", "ls", "-q", check=False).stdout.split():
                self.ctr("images", "rm", "--sync", image, check=False)
        self.end("containerd")
        self.end("snapshotter")
        end = time.monotonic() + PATIENCE_S
        while (pids := self.daemon_pids()) and time.monotonic() < end:
            for pid in pids:  # until none is left: a keeper may just have started a service
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        for point in reversed(self.mounts()):
            subprocess.run(["umount", "-l", point], check=False, capture_output=True)

    def spawn(self, name: str, argv: list[str]) -> None:
        with (self.base / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
                env={**os.environ, **self.environment},
            )  # fmt: skip

    def _wait_for(self, path: Path, name: str) -> None:
        """Until somebody listens: a process that was killed leaves its socket's file."""
        end = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(path))
                return
            if self.processes[name].poll() is not None or time.monotonic() > end:
                raise AssertionError(f"{name} did not start\n{self.logs()}")
            time.sleep(0.05)


@contextlib.contextmanager
def running(nydusd: Path | None = None, **options: Any) -> Iterator[Stack]:
    """``stack`` around this checkout's ``nydusd``, or another one, with a root of its own."""
    base = Path(f"/var/tmp/nf{os.getpid()}-{time.monotonic_ns() % 1_000_000}")
    environment = {"NYDUS_FSCACHE_ROOT": str(base / "nf")}
    programs = Path(sys.executable).parent
    with stack(
        base, nydusd or programs / "nydusd", programs / "nydus-image", environment=environment,
        **options,
    ) as made:  # fmt: skip
        yield made


@contextlib.contextmanager
def stack(base: Path, nydusd: Path, nydus_image: Path, **options: Any) -> Iterator[Stack]:
    """``base``: a new directory of at most 60 bytes on ext4, xfs or btrfs; removed at the end."""
    for program in ("containerd", "runc", "ctr"):
        if shutil.which(program) is None:
            pytest.skip(f"NO {program}: THE CONTAINERD STACK IS NOT TESTED (scripts/setup --test)")
    base.mkdir(parents=True)
    try:
        with docker_registry(base) as host:
            program = base / "nydusd"  # an upgrade writes over it
            shutil.copy(nydusd, program)
            made = Stack(base, host, program, nydus_image, **options)
            try:
                made.start()
                yield made
            finally:
                made.stop()
    finally:
        shutil.rmtree(base, ignore_errors=True)
