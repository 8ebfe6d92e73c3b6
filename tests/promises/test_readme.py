"""README: three screens, and every block of commands in it does what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import debian
import pytest
from oci_kit import Entry, Layer, layer_tar, push_image
from rig import Rig
from servers import Pusher, docker_registry

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent
THREE_SCREENS = 150  # lines


def blocks() -> dict[str, list[tuple[str, str]]]:
    """(language, text) by heading."""
    found: dict[str, list[tuple[str, str]]] = {}
    for part in re.split(r"^##+ ", README, flags=re.M)[1:]:
        inside = re.findall(r"^```(\w+)\n(.*?)^```$", part, re.M | re.S)
        if inside:
            found[part.splitlines()[0]] = inside
    return found


def block(heading: str, language: str = "sh") -> str:
    (text,) = [text for kind, text in blocks()[heading] if kind == language]
    return text


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """With ``app:1.2``: a shell and a file."""
    shell = shutil.which("busybox")
    if shell is None:
        pytest.skip("NO busybox: README's image has no shell (scripts/setup --test)")
    entries = [
        Entry("bin"), Entry("etc"), Entry("etc/hostname", b"app\n"),
        Entry("bin/sh", Path(shell).read_bytes(), mode=0o755),
    ]  # fmt: skip
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        with Pusher(host, "app") as push:
            push_image(push, "1.2", [Layer(layer_tar(entries))])
        yield host


def run(script: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        ["bash", "-euc", script], cwd=cwd, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **environment},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


def test_it_has_three_screens_and_no_other_blocks() -> None:
    assert len(README.splitlines()) <= THREE_SCREENS
    assert list(blocks()) == [
        "See it work",  # tests/test_run.py
        "Convert and mount", "A node", "Build and look inside",
    ]  # fmt: skip
    assert block("See it work") == "scripts/run\n"


def test_convert_and_mount(rig: Rig, registry: str) -> None:
    point = rig.mountpoint()
    script = block("Convert and mount").replace("/mnt/app", str(point))
    out = run(script, rig.base, REGISTRY=registry, NYDUS_FSCACHE_ROOT=str(rig.root))
    assert "started before it was pulled\n" in out
    assert f"{registry}/app:1.2-nydus" in out
    assert not os.path.ismount(point)


def test_build_and_look_inside(tmp_path: Path) -> None:
    (tmp_path / "tree" / "etc").mkdir(parents=True)
    (tmp_path / "tree" / "etc" / "hostname").write_text("app\n")
    out = run(block("Build and look inside"), tmp_path)
    assert "/etc/hostname" in out
    assert out.endswith("app\n")
    program = block("Build and look inside", "python") + "print(names, hostname)\n"
    assert run(f"python -c '{program}'", tmp_path) == "['hostname'] b'app\\n'\n"


@pytest.mark.long
def test_a_node(registry: str, tmp_path: Path) -> None:
    """In a clean Debian, where the package is what ``scripts/package`` built."""
    lines = block("A node").splitlines()
    assert lines.pop(0) == "scripts/package"
    convert = block("Convert and mount").splitlines()[0]
    run(convert.replace("1.2-nydus", "1.2-node"), tmp_path, REGISTRY=registry)
    with debian.Tree(tmp_path / "tree") as tree:
        place = tree.path / "build" / "package"
        place.mkdir(parents=True)
        shutil.copy(debian.package(), place)
        (tree.path / "mnt" / "app").mkdir()
        script = "\n".join(lines).replace("1.2-nydus", "1.2-node")
        out = tree.run("env", f"REGISTRY={registry}", "sh", "-euc", script).stdout
        assert "/etc/nydus-fscache/config.toml\n" in out
        assert '"event": "mounted"' in out
        assert re.search(r"^/mnt/app +mounted", out, re.M)
        said = tree.run("/mnt/app/bin/sh", "-c", "echo started").stdout
        assert said == "started\n"
        tree.run("nydus-fscache", "stop")
