"""Debian's Docker runs Nydus images by our graph driver plugin."""

from __future__ import annotations

import io
import os
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_engine import Docker, docker_engine, mounts
from oci_kit import Layer, push_image
from servers import Pusher, bootstrap_layer, nydus_manifest
from trees import assert_tree

PYTHON = ("/usr/bin/python3.11", "-S", "-c")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no containers")


@pytest.fixture
def rig(golden: Path) -> Iterator[Docker]:
    with docker_engine(golden / "images" / "layers-zstd" / "blobs") as made:
        yield made


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
    with Pusher(rig.host, "plain") as push:
        push_image(push, "1", [Layer(first), Layer(second)])
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
