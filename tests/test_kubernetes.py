"""Manifests that a cluster takes, and the entry script of the DaemonSet's container in a chroot."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
KUBERNETES = ROOT / "resources" / "kubernetes"
MANIFESTS = ("nydus-fscache.yaml", "runtime-class.yaml")
TOOL = KUBERNETES / "containerd_config.py"


def documents() -> list[dict[str, Any]]:
    return [d for name in MANIFESTS for d in yaml.safe_load_all((KUBERNETES / name).read_text())]


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = [d for d in documents() if d["kind"] == kind]
    return found


@pytest.mark.parametrize("version", ["1.27", "1.31", "1.34"])
def test_the_schema_of_kubernetes(version: str) -> None:
    import kubernetes_validate

    for document in documents():
        kubernetes_validate.validate(document, version, strict=True)
    wrong = of_kind("DaemonSet")
    wrong["spec"]["template"]["spec"]["hostPIDs"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_what_a_node_needs_is_said() -> None:
    pod = of_kind("DaemonSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["hostPID"]
    assert not pod["automountServiceAccountToken"]
    assert "livenessProbe" not in container  # the node is served whether the pod runs or not
    assert "lifecycle" not in container  # nor does its end take anything off
    assert of_kind("RuntimeClass")["handler"] == "nydus"
    assert of_kind("Pod")["spec"]["runtimeClassName"] == "nydus"
    files = of_kind("ConfigMap")["data"]
    script = (KUBERNETES / "node-install").read_text()
    assert set(re.findall(r"\$CONFIG/([\w.]+)", script)) == set(files)


def test_the_configurations_in_it_are_read(tmp_path: Path) -> None:
    from nydus_fscache.config import nydusd, settings

    files = of_kind("ConfigMap")["data"]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert settings.read(tmp_path / "config.toml")["NYDUS_FSCACHE_UNIT"] == "nydus-fscache.service"
    nydusd.document_of(nydusd.read(tmp_path / "nydusd.json"), tmp_path / "nydusd.json")
    snapshotter = tomllib.loads(files["snapshotter.toml"])
    assert snapshotter["daemon"]["nydusd_path"] == "/usr/bin/nydusd"
    assert snapshotter["address"] in TOOL.read_text()


# -- containerd's configuration ------------------------------------------------------------------

VERSION_2 = """\
version = 2
root = "/var/lib/containerd"
[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "registry.k8s.io/pause:3.9"
    [plugins."io.containerd.grpc.v1.cri".containerd]
      default_runtime_name = "runc"
      disable_snapshot_annotations = true
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
        runtime_type = "io.containerd.runc.v2"
        [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
          SystemdCgroup = true
"""
VERSION_3 = """\
version = 3
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = true
"""
CASES = {
    "2": VERSION_2,
    "2 without the line": VERSION_2.replace("      disable_snapshot_annotations = true\n", ""),
    "2 empty": "version = 2\n",
    "3": VERSION_3,
    "3 empty": "version = 3\n",
}


def tool(how: str, file: Path) -> str:
    done = subprocess.run(
        [sys.executable, TOOL, how, file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", CASES)
def test_containerd_gets_a_runtime_and_loses_it_again(tmp_path: Path, name: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(CASES[name])
    assert tool("check", file) == "changed"
    assert file.read_text() == CASES[name]
    assert tool("add", file) == "changed"
    assert tool("add", file) == tool("check", file) == "unchanged"
    document = tomllib.loads(file.read_text())
    plugins = document["plugins"]
    if name.startswith("2"):
        cri = plugins["io.containerd.grpc.v1.cri"]["containerd"]
        images, runtimes = cri, cri["runtimes"]
    else:
        images = plugins["io.containerd.cri.v1.images"]
        runtimes = plugins["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]
    assert images["disable_snapshot_annotations"] is False
    assert runtimes["nydus"]["snapshotter"] == "nydus"
    was = {} if "empty" in name else {"SystemdCgroup": True}
    assert runtimes["nydus"]["options"] == was
    assert runtimes.get("runc", {}).get("options", {}) == was
    assert document["proxy_plugins"]["nydus"]["type"] == "snapshot"
    assert tool("remove", file) == "changed"
    assert tomllib.loads(file.read_text()) == tomllib.loads(CASES[name])
    assert tool("remove", file) == "unchanged"


def test_what_is_not_understood_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    for text in ("version = 9\n", "version = [\n", '[proxy_plugins.nydus]\nversion = 2\n'):
        file.write_text(text)
        done = subprocess.run(
            [sys.executable, TOOL, "add", file], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert str(file) in done.stderr
        assert file.read_text() == text


@pytest.mark.skipif(not shutil.which("containerd"), reason="NO containerd: scripts/setup --test")
def test_containerd_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(VERSION_2)
    tool("add", file)
    shown = subprocess.run(
        ["containerd", "-c", file, "config", "dump"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    document = tomllib.loads(shown)
    cri = document["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]
    assert cri["disable_snapshot_annotations"] is False
    assert cri["runtimes"]["nydus"]["options"]["SystemdCgroup"] is True
    assert document["proxy_plugins"]["nydus"]["type"] == "snapshot"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="NO systemd-analyze")
def test_systemd_reads_the_snapshotters_unit(tmp_path: Path) -> None:
    unit = tmp_path / "nydus-snapshotter.service"
    text = (KUBERNETES / unit.name).read_text()
    program = "/usr/local/bin/containerd-nydus-grpc"
    assert f"ExecStart={program} " in text
    unit.write_text(text.replace(program, shutil.which("true") or ""))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert [line for line in done.stderr.splitlines() if str(unit) in line] == []


# -- the entry script ----------------------------------------------------------------------------


# no systemd runs in a chroot; links of units are made all the same
FAKE_SYSTEMCTL = """\
#!/bin/sh
echo "$@" >>/var/log/systemctl
case "$1" in
enable) exec /usr/bin/systemctl enable "$2" ;;
disable) exec /usr/bin/systemctl disable "$3" ;;
esac
"""


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no chroot")
def test_the_entry_script_installs_changes_and_removes(tmp_path: Path) -> None:
    """In a tree that is the container, for a tree below it that is the node."""
    import debian

    deb = debian.package()
    with debian.Tree(tmp_path / "pod") as pod:
        (pod.path / "host").mkdir()
        with debian.Tree(pod.path / "host" / "node") as node:
            config, payload = pod.path / "config", pod.path / "payload"
            config.mkdir()
            payload.mkdir()
            for name, text in of_kind("ConfigMap")["data"].items():
                (config / name).write_text(text)
            shutil.copy(deb, payload)
            (payload / "containerd-nydus-grpc").write_text("#!/bin/sh\nsleep 1000\n")
            for name in ("containerd_config.py", "nydus-snapshotter.service"):
                shutil.copy(KUBERNETES / name, payload)
            shutil.copy(KUBERNETES / "node-install", pod.path / "usr/local/bin")
            (node.path / "etc/containerd").mkdir()
            settings = node.path / "etc/containerd/config.toml"
            settings.write_text(VERSION_2)
            calls = node.path / "var/log/systemctl"
            fake = node.path / "usr/local/bin/systemctl"
            fake.write_text(FAKE_SYSTEMCTL)
            fake.chmod(0o755)
            before = node.files()

            def told() -> list[str]:
                found = calls.read_text().splitlines() if calls.exists() else []
                calls.unlink(missing_ok=True)
                return [call for call in found if not call.startswith("--")]  # dpkg's own

            def script(how: str, check: bool = True) -> subprocess.CompletedProcess[str]:
                return pod.run(
                    "env", "HOST=/host/node", "HOST_RUN=chroot /host/node", "node-install", how,
                    check=check,
                )  # fmt: skip

            assert "is installed" in script("once").stderr
            assert node.run("nydusd", "--version").stdout
            shown = node.run("nydus-fscache", "config").stdout
            assert str(50 << 30) in shown
            assert (node.path / "etc/nydus/nydusd.json").stat().st_mode & 0o077 == 0
            assert tomllib.loads(settings.read_text())["proxy_plugins"]["nydus"]
            wanted = node.path / "etc/systemd/system/multi-user.target.wants"
            assert (wanted / "nydus-snapshotter.service").is_symlink()
            assert told() == [
                "daemon-reload", "enable nydus-snapshotter.service",
                "restart nydus-snapshotter.service", "restart containerd.service",
            ]  # fmt: skip
            assert script("once").stderr == ""  # nothing is done twice
            assert told() == []
            node.run("nydus-fscache", "stop", check=False)
            assert script("check", check=False).returncode != 0

            text = (config / "config.toml").read_text().replace("50G", "60G")
            (config / "config.toml").write_text(text)
            assert "etc/nydus-fscache/config.toml is new" in script("once").stderr
            assert str(60 << 30) in node.run("nydus-fscache", "config").stdout
            assert told() == ["reload nydus-fscache.service"]
            (config / "config.toml").write_text("[cache]\nlimti = 1\n")
            refused = script("once", check=False)
            assert refused.returncode != 0
            assert "cache.limti" in refused.stderr
            (config / "config.toml").write_text(text)
            script("once")

            told()
            script("remove")
            assert told()[:2] == [
                "restart containerd.service", "disable --now nydus-snapshotter.service"
            ]  # fmt: skip
            assert tomllib.loads(settings.read_text()) == tomllib.loads(VERSION_2)
            left = {n for n in node.files() - before if "__pycache__" not in n}
            # what Debian keeps of a package that is removed and not purged
            kept = ("etc/nydus-fscache", "deb-systemd-helper", "etc/systemd/system/nydus-fscache")
            assert {n for n in left if not any(k in n for k in kept)} == set()

            (node.path / "etc/os-release").unlink()
            (node.path / "etc/os-release").write_text('PRETTY_NAME="Another"\n')
            other = script("once", check=False)
            assert other.returncode != 0
            assert "the node runs Another" in other.stderr
