"""What would break nydusd on a node is named with its remedy, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from real_daemon import started

from nydus_fscache.api.nydusd import node_checks
from nydus_fscache.kernel.probe import Finding

NYDUSD = Path(sys.executable).with_name("nydusd")
TEMPLATE = {"device": {"backend": {"type": "registry", "config": {}}}}


class Proc:
    """A /proc with this process and what is added."""

    def __init__(self, base: Path) -> None:
        self.path = base / "proc"
        self.add("self", "mnt:[1]", "python")
        self.table("25 1 0:1 / / rw - ext4 /dev/a rw\n")

    def add(self, pid: str, namespace: str, *words: str) -> None:
        (self.path / pid / "ns").mkdir(parents=True)
        (self.path / pid / "ns" / "mnt").symlink_to(namespace)
        (self.path / pid / "cmdline").write_text("\0".join([*words, ""]))

    def table(self, text: str) -> None:
        (self.path / "self" / "mountinfo").write_text(text)

    def finding(self, name: str) -> Finding:
        return next(f for f in node_checks.examine(self.path) if f.name == name)


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Proc:
    monkeypatch.setattr(node_checks, "CONFIGS", ())
    return Proc(tmp_path)


def test_a_private_namespace_is_named(proc: Proc) -> None:
    assert proc.finding("mount namespace").ok, "no runtime runs"
    proc.add("7", "mnt:[1]", "/usr/bin/containerd")
    assert proc.finding("mount namespace").ok
    proc.add("8", "mnt:[2]", "/usr/bin/dockerd", "-H")
    found = proc.finding("mount namespace")
    assert (found.ok, "dockerd" in found.detail, "rshared" in found.remedy) == (False, True, True)
    proc.table("25 1 0:1 / / rw shared:3 - ext4 /dev/a rw\n")
    assert proc.finding("mount namespace").ok


def _settings(tmp_path: Path, **daemon: str) -> Path:
    template = tmp_path / "nydusd.json"
    template.write_text(json.dumps(TEMPLATE))
    given = {"nydusd_path": str(NYDUSD), "nydusd_config": str(template), **daemon}
    lines = [f'root = "{tmp_path.parent}"', "[daemon]", *(f'{k} = "{v}"' for k, v in given.items())]
    file = tmp_path / "config.toml"
    file.write_text("\n".join(lines))
    return file


def test_a_right_configuration_has_no_fault(proc: Proc, tmp_path: Path) -> None:
    program = "/usr/bin/containerd-nydus-grpc"
    proc.add("9", "mnt:[1]", program, "--config", str(_settings(tmp_path)))
    found = {f.name: f for f in node_checks.examine(proc.path)}
    assert {"nydusd_path", "fs_driver", "nydusd_config"} <= set(found)
    assert [f for f in found.values() if not f.ok and f.name != "snapshotter's root"] == []


@pytest.mark.parametrize(
    ("name", "value", "detail"),
    [
        ("nydusd_path", "/no/such/nydusd", "cannot be run"),
        ("nydusd_path", "/bin/true", "is not this version"),
        ("fs_driver", "blockdev", "starts no nydusd"),
        ("nydusd_config", "/no/such/file", "cannot read"),
    ],
)
def test_a_wrong_configuration_is_named(
    proc: Proc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, detail: str
) -> None:
    monkeypatch.setattr(node_checks, "CONFIGS", (str(_settings(tmp_path, **{name: value})),))
    found = proc.finding(name)
    assert (found.ok, detail in found.detail, bool(found.remedy)) == (False, True, True)


def test_what_is_no_configuration_is_said(
    proc: Proc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text("[[[")
    monkeypatch.setattr(node_checks, "CONFIGS", (str(tmp_path / "config.toml"),))
    assert not proc.finding("nydus-snapshotter").ok


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no daemon")
def test_a_kernel_without_any_transport_is_said_at_the_start(tmp_path: Path) -> None:
    """By nydusd and by the daemon, before anybody mounts: without fanotify, and without FUSE."""
    if shutil.which("strace") is None or Path("/dev/cachefiles").exists():
        pytest.skip("NO strace, OR CACHEFILES: THE START WITHOUT A TRANSPORT IS NOT TESTED")
    program = tmp_path / "nydusd"
    program.write_text(
        "#!/bin/sh\nmount --bind /dev/null /dev/fuse\nexec strace -D -f -qq -o /dev/null -e "
        f'trace=fanotify_init -e inject=fanotify_init:error=ENOSYS {NYDUSD} "$@"\n'
    )
    program.chmod(0o755)
    wrapper = tmp_path / "alone"
    wrapper.write_text(f'#!/bin/sh\nexec unshare -m --propagation private {program} "$@"\n')
    wrapper.chmod(0o755)
    with started(wrapper, tmp_path / "d") as daemon:
        end = time.monotonic() + 60
        while "no image can be mounted here" not in daemon.log():
            assert time.monotonic() < end, daemon.log()
            time.sleep(0.05)
        for said in (daemon.log(), (daemon.base / "root" / "daemon.log").read_text()):
            assert "no transport works" in said
            assert "CONFIG_FANOTIFY_ACCESS_PERMISSIONS" in said, "with the remedy"
