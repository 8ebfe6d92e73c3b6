"""Harbor's acceleration service converts by our ``nydus-image``, at a webhook of a registry."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from oci_kit import Entry, Layer, layer_tar, peer, push_image
from rig import Rig
from servers import Pusher, docker_registry

BIN = Path(sys.executable).parent
PATIENCE_S = 60.0

pytestmark = pytest.mark.long


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    with docker_registry(tmp_path) as host:
        yield host


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def acceld(work: Path, host: str, **driver: str) -> Iterator[str]:
    """Its URL.  ``driver``: settings beside the builder."""
    port = free_port()
    (work / "driver").mkdir(parents=True)
    config = {
        "server": {"name": "API", "host": "127.0.0.1", "port": str(port)},
        "metric": {"enabled": True},
        "provider": {
            "source": {host: {"insecure": False, "webhook": {"auth_header": "let me in"}}},
            "work_dir": str(work / "acceld"), "gcpolicy": {"threshold": "1000MB"},
            "cache_size": 200, "cache_version": "v1",
        },
        "converter": {
            "worker": 2, "harbor_annotation": True,
            "driver": {"type": "nydus", "config": {
                "work_dir": str(work / "driver"), "builder": str(BIN / "nydus-image"), **driver,
            }},
            "rules": [{"tag_suffix": "-nydus"}, {"cache_tag": "nydus-cache"}],
        },
    }  # fmt: skip
    (work / "acceld.yaml").write_text(json.dumps(config))
    url = f"http://127.0.0.1:{port}"
    with (work / "acceld.log").open("ab") as log:
        process = subprocess.Popen(
            [peer("acceld"), "--config", work / "acceld.yaml"], stdout=log, stderr=log,
            env={**os.environ, "HOME": str(work), "DOCKER_CONFIG": str(work)},
        )  # fmt: skip
    try:
        end = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(f"{url}/api/v1/health", timeout=PATIENCE_S).ok:
                    break
            assert process.poll() is None, (work / "acceld.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def convert(url: str, reference: str, authorization: str = "let me in") -> requests.Response:
    return requests.post(
        f"{url}/api/v1/conversions?sync=true", headers={"Authorization": authorization},
        json={"type": "PUSH_ARTIFACT", "event_data": {"resources": [{"resource_url": reference}]}},
        timeout=PATIENCE_S,
    )  # fmt: skip


def push(host: str, tag: str, *files: tuple[str, bytes]) -> str:
    """A layer for each file."""
    layers = [Layer(layer_tar([Entry(name, data)])) for name, data in files]
    with Pusher(host, "app") as pusher:
        push_image(pusher, tag, layers)
    return f"{host}/app:{tag}"


def tree(rig: Rig, reference: str) -> dict[str, bytes]:
    point = rig.mountpoint()
    rig.run("mount", reference, point, "--plain-http")
    try:
        return {path.name: path.read_bytes() for path in point.iterdir()}
    finally:
        rig.run("umount", point)


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: nothing is mounted")
def test_a_webhook_converts(rig: Rig, registry: str, tmp_path: Path) -> None:
    one, two = os.urandom(300_000), os.urandom(200_000)
    first = push(registry, "1", ("one", one), ("two", two))
    work = tmp_path / "first"
    with acceld(work, registry) as url:
        assert convert(url, first, "who am I").status_code == 401
        done = convert(url, first)
        assert done.ok, f"{done.text}\n{(work / 'acceld.log').read_text()}"
    assert tree(rig, f"{first}-nydus") == {"one": one, "two": two}

    # on another machine, a layer out of the remote cache has another size of chunks: merge exits
    # with 2, and acceld converts it again without the cache
    three = os.urandom(100_000)
    second = push(registry, "2", ("one", one), ("three", three))
    work = tmp_path / "second"
    with acceld(work, registry, fs_chunk_size="0x10000") as url:
        convert(url, second)  # this version answers 500 with the error of its first try, too
    assert "retry conversion without cache" in (work / "acceld.log").read_text()
    assert tree(rig, f"{second}-nydus") == {"one": one, "three": three}
