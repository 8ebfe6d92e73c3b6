"""Each block of docs/runtimes.md is run as it stands there: only places are this test's own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from containerd import running
from docker_engine import DOCKER, docker_engine, mounts
from podman import new_base, podman, push
from servers import Pusher, bootstrap_layer, nydus_manifest

from nydus_fscache.config import nydusd as config

BIN = Path(sys.executable).parent
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "runtimes.md").read_text()
LIMIT_S = 180

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no containers")


def blocks(title: str, language: str) -> list[str]:
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.M | re.S)


def shell(block: str, where: Path, places: dict[str, str], **environment: str) -> str:
    for old, new in places.items():
        assert old in block, f"the page says nothing of {old}"
        block = block.replace(old, new)
    out = where / "said"
    with out.open("wb") as file:  # a pipe would be held by what runs on behind it
        done = subprocess.run(
            ["bash", "-euxc", block], cwd=where, stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, check=False, timeout=LIMIT_S,
            env={**os.environ, "PATH": f"{BIN}:/usr/sbin:{os.environ['PATH']}", **environment},
        )  # fmt: skip
    said = out.read_text(errors="replace")
    assert done.returncode == 0, said
    return said


def test_containerd(golden: Path, tmp_path: Path) -> None:
    (block,) = blocks("containerd", "sh")
    with running() as rig:
        reference = rig.push(golden / "images" / "layers-zstd")
        places = {"/run/containerd/containerd.sock": str(rig.containerd_socket)}
        address = str(rig.containerd_socket)
        said = shell(block, tmp_path, places, REF=reference, CONTAINERD_ADDRESS=address)
        assert said.splitlines()[-1] == "1"


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.long
def test_podman(golden: Path) -> None:
    title = "Podman, Buildah, CRI-O"
    (settings,), (block,) = blocks(title, "toml"), blocks(title, "sh")
    with podman(new_base()) as rig:
        reference = push(rig, golden / "images/layers-zstd")
        storage = Path(rig.environment["CONTAINERS_STORAGE_CONF"])
        lines = settings.replace("/var/lib/nydus-store", str(rig.store))
        graph = f'graphroot = "{rig.home}/graph"\nrunroot = "{rig.home}/run/storage"\n'
        storage.write_text(lines.replace("[storage.options]", f"{graph}[storage.options]"))
        start, _, rest = block.partition("\n")
        assert start == "nydus-fscache store /var/lib/nydus-store &"
        rig.start_store()
        places = {"podman pull": f"podman pull --signature-policy {rig.policy}"}
        environment = {**rig.environment, "REF": reference}
        said = shell(rest, rig.home, places, **environment)
        assert "\n1\n" in said
        assert rig.erofs() == []


@pytest.mark.long
def test_docker(golden: Path) -> None:
    (block,) = blocks("Docker", "sh")
    image = golden / "images" / "layers-zstd"
    with docker_engine(image / "blobs", start=False) as rig:
        with Pusher(rig.host, "py") as push:
            layer = bootstrap_layer((image / "image.boot").read_bytes())
            push.manifest("1", nydus_manifest(push, layer, []))
        start, daemon, rest = block.split("\n", 2)
        assert start.startswith("nydus-fscache graphdriver --socket /run/docker/plugins/nydus.sock")
        assert daemon == "dockerd --experimental -s nydus"
        backend = {"type": "localfs", "localfs": {"dir": str(image / "blobs")}}
        (rig.base / "backend.json").write_text(json.dumps(backend))
        try:
            places = {
                "/run/docker/plugins/nydus.sock": str(rig.plugin),
                "graphdriver": f"graphdriver --root {rig.base}/root",
                "&": "& echo $! > pid",
            }
            shell(start, rig.base, places)
            wait_for(rig.plugin.exists)
            rig.start_docker()
            environment = {"REF": f"{rig.host}/py:1", "DOCKER_HOST": f"unix://{rig.socket}"}
            said = shell(rest, rig.base, {"docker ": f"{DOCKER} "}, **environment)
            assert said.splitlines()[-1] == "1"
            rig.docker("rmi", environment["REF"])
            assert mounts(rig.base / "data") == []
        finally:
            rig.end("dockerd")
            if (rig.base / "pid").exists():
                os.kill(int((rig.base / "pid").read_text()), 15)


def test_export(golden: Path, tmp_path: Path) -> None:
    (block,) = blocks("Kata and microVMs", "sh")
    image = golden / "images" / "layers-zstd"
    shutil.copy(image / "image.boot", tmp_path)
    (tmp_path / "blobs").symlink_to(image / "blobs")
    assert re.search(r"\b[0-9a-f]{64}\b", shell(block, tmp_path, {})), "the root of the hash tree"
    assert (tmp_path / "image.disk").stat().st_size > 1 << 20


def test_dragonfly(tmp_path: Path) -> None:
    (block,) = blocks("Dragonfly", "json")
    file = tmp_path / "backend.json"
    file.write_text(block)
    backend = config.parse(config.read(file), file).backend
    assert backend["registry"]["proxy"]["ping_url"] == "http://127.0.0.1:4003/healthy"


def test_no_block_is_left_out() -> None:
    assert len(re.findall(r"^```\w+$", PAGE, re.M)) == 6
