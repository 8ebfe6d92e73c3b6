"""nydusd's knobs of fetching, by what a server sees of them."""

from __future__ import annotations

import json
import random
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from built import build_image
from rangeserver import RangeServer
from rig import Rig

CHUNK = 1 << 16
SIZE = 128 * CHUNK
PATIENCE_S = 30


class Server(RangeServer):
    """Counts connections: we keep as many as requests were under way at once."""

    accepted = 0

    def get_request(self) -> tuple[socket.socket, object]:
        self.accepted += 1
        return super().get_request()

    def ranges(self) -> list[tuple[int, int]]:
        """Of chunk data; [off, end)."""
        found = []
        for seen in self.requests():
            first, last = map(int, seen.headers["Range"].removeprefix("bytes=").split("-"))
            if first < SIZE:
                found.append((first, last + 1))
        return found


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """One file that does not compress."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    build_image(
        tmp_path / "tree", {"file": random.Random(3).randbytes(SIZE)},
        "-B", tmp_path / "boot", "-D", blobs, "--chunk-size", hex(CHUNK),
    )  # fmt: skip
    return tmp_path / "boot"


def _mount(rig: Rig, image: Path, server: RangeServer, **members: Any) -> Path:
    options = {"scheme": "http", "host": server.host, "repo": "test"}
    document = {"device": {"backend": {"type": "registry", "config": options}}, **members}
    file = rig.base / "config.json"
    file.write_text(json.dumps(document))
    mount = rig.mountpoint()
    rig.run("mount", image, mount, "--backend", file)
    return mount


def _wait_until_complete(rig: Rig) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not rig.status()["blobs"][0]["complete"]:
        assert time.monotonic() < deadline, rig.log()
        time.sleep(0.05)


@pytest.mark.parametrize("amplify", [None, 0, 1 << 20])
def test_amplify_io(rig: Rig, image: Path, amplify: int | None) -> None:
    with Server(image.parent / "blobs") as server:
        members = {} if amplify is None else {"amplify_io": amplify}
        mount = _mount(rig, image, server, fs_prefetch={"enable": False}, **members)
        at = 40 * CHUNK
        with (mount / "file").open("rb", buffering=0) as f:
            f.seek(at + 5)
            assert len(f.read(1)) == 1
        least = CHUNK if amplify is None else max(amplify, 2 * CHUNK)
        ((first, end),) = server.ranges()
        assert first <= at
        assert least <= end - first <= least + CHUNK


@pytest.mark.parametrize("merging", [1 << 18, 1 << 21])
def test_merging_size(rig: Rig, image: Path, merging: int) -> None:
    with Server(image.parent / "blobs") as server:
        _mount(rig, image, server, fs_prefetch={"enable": True, "merging_size": merging})
        _wait_until_complete(rig)
        sizes = [end - first for first, end in server.ranges()]
        assert max(sizes) <= merging
        assert len(sizes) <= SIZE // merging * 4 // 3 + 2


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_count(rig: Rig, image: Path, threads: int) -> None:
    prefetch = {"enable": True, "threads_count": threads, "merging_size": 1 << 18}
    with Server(image.parent / "blobs", latency_ms=20) as server:
        _mount(rig, image, server, fs_prefetch=prefetch)
        _wait_until_complete(rig)
        assert len(server.ranges()) > 20
        assert min(threads, 2) <= server.accepted <= threads


def test_bandwidth_rate(rig: Rig, image: Path) -> None:
    """Prefetch keeps to it; a reader takes its share and does not wait."""
    rate = SIZE // 2
    prefetch = {"enable": True, "bandwidth_rate": rate, "merging_size": 1 << 18}
    with Server(image.parent / "blobs") as server:
        began = time.monotonic()
        mount = _mount(rig, image, server, fs_prefetch=prefetch)
        with (mount / "file").open("rb", buffering=0) as f:
            f.seek(SIZE - CHUNK)
            assert len(f.read(CHUNK)) == CHUNK
        loaded = sum(end - first for first, end in server.ranges())
        assert loaded <= rate * (time.monotonic() - began) + (1 << 20)
        _wait_until_complete(rig)
        assert time.monotonic() - began >= (SIZE - (1 << 20)) / rate
