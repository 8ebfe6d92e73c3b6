"""Blobs through Dragonfly: its headers, its errors, without it and back to it, under readers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cold_image
import pytest
from dragonfly import Dragonfly
from rangeserver import RangeServer
from rig import Rig, regular_files

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: nothing can be mounted")

CHECK_S = 0.1  # between health checks
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cold_image.create(tmp_path_factory.mktemp("cold"))


@dataclass
class Scene:
    """An image whose files nobody has read, its registry, and Dragonfly before it."""

    origin: RangeServer
    proxy: Dragonfly
    unread: list[Path]

    def read(self) -> None:
        """One file more; an error is the test's."""
        path = self.unread.pop()
        assert len(path.read_bytes()) == path.stat().st_size

    def direct(self) -> int:
        """Requests of ours to the source: Dragonfly asks for no ranges."""
        return sum("Range" in seen.headers for seen in self.origin.seen)

    def went_through(self) -> bool:
        """Did the next read that asks anybody go through Dragonfly?  Neighbours come unasked."""
        asked, direct = len(self.proxy.seen), self.direct()
        while True:
            self.read()
            if self.direct() > direct:
                return False
            if len(self.proxy.seen) > asked:
                return True


@pytest.fixture
def scene(rig: Rig, cold: Path, tmp_path: Path) -> Iterator[Scene]:
    empty = tmp_path / "empty"
    empty.mkdir()
    with RangeServer(cold / "blobs") as origin, Dragonfly(empty) as proxy:
        backend = {
            "type": "registry",
            "registry": {
                "scheme": "http", "host": origin.host, "repo": "a/b", "timeout": 2,
                "proxy": {
                    "url": proxy.url, "ping_url": proxy.ping_url, "fallback": True,
                    "check_interval": CHECK_S,
                },
            },
        }  # fmt: skip
        file = tmp_path / "backend.json"
        file.write_text(json.dumps(backend))
        point = rig.mountpoint()
        rig.run("mount", cold / "image.boot", point, "--backend", file, "--prefetch", "none")
        yield Scene(origin, proxy, [f for f in regular_files(point) if f.stat().st_size > 1000])
        rig.run("umount", point)


def wait_until(what: Callable[[], bool]) -> float:
    """Seconds that it took."""
    start = time.monotonic()
    while not what():
        assert time.monotonic() - start < PATIENCE_S
        time.sleep(0.02)
    return time.monotonic() - start


def test_a_blob_leaves_its_source_once(scene: Scene) -> None:
    for _ in range(20):
        scene.read()
    assert scene.direct() == 0
    assert len(scene.proxy.seen) > 2
    assert scene.proxy.from_source == 1, "a task; ranges come out of it"
    assert all(seen["X-Dragonfly-Priority"] in "36" for seen in scene.proxy.seen)
    assert all("Range" in seen for seen in scene.proxy.seen)


@pytest.mark.parametrize("mode", ["broken", "busy"])
def test_errors_of_its_own_send_readers_to_the_source(scene: Scene, mode: str) -> None:
    assert scene.went_through()
    scene.proxy.mode = mode
    for _ in range(20):
        scene.read()
    assert scene.direct() > 0


def test_fail_over_and_back(scene: Scene) -> None:
    """What its health says counts, without a restart and without an error to a reader."""
    assert scene.went_through()
    scene.proxy.healthy = False
    left = wait_until(lambda: not scene.went_through())
    scene.proxy.healthy = True
    back = wait_until(scene.went_through)
    print(f"left after {left:.2f} s, back after {back:.2f} s, checks each {CHECK_S} s")
    assert max(left, back) < 5


def test_errors_of_the_source_are_the_source_s(scene: Scene) -> None:
    """They count as answers: the proxy is not left out for them."""
    scene.proxy.tasks.clear()
    scene.origin.route = lambda *_: (404, {}, b"")
    with pytest.raises(OSError, match="Input/output"):
        scene.unread.pop().read_bytes()
    scene.origin.route = None
    assert scene.proxy.seen
