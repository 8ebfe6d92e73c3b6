"""Traces and prefetch, seen from outside: what is recorded, what is loaded, and that readers
come first."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import pytest
from built import build_image, create
from rangeserver import Fault, RangeServer
from rig import Rig

import rafs_v6

FILES = 40
SIZE = 200_000
PATIENCE_S = 30


@dataclass
class Image:
    bootstrap: Path
    blobs: Path
    contents: dict[str, bytes]
    backend: Path

    def serve_from(self, server: RangeServer) -> None:
        options = {"scheme": "http", "host": server.host, "repo": "test"}
        self.backend.write_text(json.dumps({"type": "registry", "registry": options}))

    def mount(self, rig: Rig, *extra: str) -> Path:
        path = rig.mountpoint()
        rig.run("mount", self.bootstrap, path, "--backend", self.backend, *extra)
        return path


def _build(base: Path, table: str = "") -> Image:
    blobs = base / "blobs"
    blobs.mkdir()
    rng = random.Random(4)
    contents = {f"d{i % 4}/f{i:02}": rng.randbytes(SIZE) for i in range(FILES)}
    policy = ["--prefetch-policy", "fs"] if table else []
    build_image(
        base / "tree", contents,
        "-B", base / "boot", "-D", blobs, "--chunk-size", "0x10000", *policy, stdin=table,
    )  # fmt: skip
    return Image(base / "boot", blobs, contents, base / "backend.json")


def _table_of(image: Image, paths: list[str], out: Path) -> list[str]:
    """The prefetch table of the image when it is built again with these paths."""
    policy = ["--prefetch-policy", "fs", image.blobs.parent / "tree"]
    create("-B", out, "-D", image.blobs, *policy, stdin="\n".join(paths))
    bootstrap = rafs_v6.Bootstrap.from_file(out)
    names = {bootstrap.lookup(path).nid: path for path in paths}
    return [names[nid] for nid in bootstrap.prefetch_nids if nid]


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return _build(tmp_path)


def _wait_until_loaded(rig: Rig, size: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while sum(b["present"] for b in rig.status()["blobs"]) < size:
        assert time.monotonic() < deadline, rig.status()
        time.sleep(0.05)


def _forget_data(rig: Rig) -> None:
    rig.run("stop")
    shutil.rmtree(rig.root / "cache")


def test_a_start_is_recorded_and_loaded_ahead_the_next_time(rig: Rig, image: Image) -> None:
    names = ["d3/f15", "d0/f04", "d2/f30", "d1/f01"]
    with RangeServer(image.blobs, latency_ms=2) as server:
        image.serve_from(server)
        mount = image.mount(rig)
        for name in names:
            assert (mount / name).read_bytes() == image.contents[name]
        paths = rig.run("trace", mount, "--paths").stdout.split()
        wanted = [f"/{name}" for name in names]
        assert [p for p in paths if p in wanted] == wanted
        document = json.loads(rig.run("trace", mount, "--json").stdout)
        times = [a["t_ms"] for a in document["accesses"]]
        assert times == sorted(times)
        picture = rig.base / "start.svg"
        rig.run("trace", mount, "--plot", picture)
        circles = ET.parse(picture).getroot().iter("{http://www.w3.org/2000/svg}circle")
        assert len(list(circles)) == len(times)
        bitmap = rig.base / "start.png"
        rig.run("trace", mount, "--plot", bitmap)
        with PIL.Image.open(bitmap) as opened:
            pixels = opened.convert("RGB").tobytes()
        marked = sum(b > r + 40 for r, b in zip(pixels[::3], pixels[2::3], strict=True))
        assert marked >= 10
        refused = rig.run("trace", mount, "--plot", rig.base / "start.pdf", check=False)
        assert (refused.returncode, "FILE.svg" in refused.stderr) == (2, True)
        _forget_data(rig)
        # the daemon is gone, the trace is not
        assert rig.run("trace", image.bootstrap, "--paths").stdout.split() == paths
        assert _table_of(image, paths, rig.base / "optimized") == paths

        mount = image.mount(rig)
        _wait_until_loaded(rig, len(names) * SIZE)
        requests = len(server.requests())
        for name in names:
            assert (mount / name).read_bytes() == image.contents[name]
        assert len(server.requests()) == requests
        assert rig.fetched() < sum(map(len, image.contents.values())) // 2


def test_a_trace_that_is_damaged_counts_as_none(rig: Rig, image: Image) -> None:
    with RangeServer(image.blobs) as server:
        image.serve_from(server)
        mount = image.mount(rig)
        (mount / "d0/f00").read_bytes()
        rig.run("trace", mount, "--paths")
        _forget_data(rig)
        (kept,) = (rig.root / "images").glob("*.trace")
        for damage in ("{", '{"version": 1, "accesses": [["x"]]}'):
            kept.write_text(damage)
            mount = image.mount(rig)
            assert (mount / "d1/f01").read_bytes() == image.contents["d1/f01"]
            _forget_data(rig)


def test_prefetch_of_paths_and_of_all(rig: Rig, image: Image) -> None:
    with RangeServer(image.blobs, latency_ms=2) as server:
        image.serve_from(server)
        mount = image.mount(rig, "--prefetch", "none")
        assert rig.fetched() == 0
        rig.run("prefetch", mount, "/d1", "/d2/f02")
        requests = len(server.requests())
        for name in ("d1/f01", "d1/f37", "d2/f02"):
            assert (mount / name).read_bytes() == image.contents[name]
        assert len(server.requests()) == requests
        assert not rig.status()["blobs"][0]["complete"]
        assert rig.run("prefetch", mount, "/none", check=False).returncode == 2
        rig.run("prefetch", image.bootstrap)
        assert rig.status()["blobs"][0]["complete"]
        assert "already" in rig.run("prefetch", mount).stdout
        for name, data in image.contents.items():
            assert (mount / name).read_bytes() == data


def test_the_prefetch_table_is_the_order_without_a_trace(rig: Rig, tmp_path: Path) -> None:
    image = _build(tmp_path, "/d3/f07\n/d2\n")
    with RangeServer(image.blobs) as server:
        image.serve_from(server)
        mount = image.mount(rig)
        _wait_until_loaded(rig, SIZE * (1 + FILES // 4))
        requests = len(server.requests())
        for name in ("d3/f07", "d2/f02", "d2/f38"):
            assert (mount / name).read_bytes() == image.contents[name]
        assert len(server.requests()) == requests
        assert not rig.status()["blobs"][0]["complete"]


def test_a_reader_overtakes_prefetch(rig: Rig, image: Image) -> None:
    with RangeServer(image.blobs, latency_ms=20, mbps=2) as server:  # 4 s for all of it
        image.serve_from(server)
        mount = image.mount(rig, "--prefetch", "all")
        last = max(image.contents)
        assert (mount / last).read_bytes() == image.contents[last]
        blob = rig.status()["blobs"][0]
        assert blob["present"] < blob["size"] // 2
        rig.run("umount", mount)  # in the middle of it


def test_prefetch_gives_up_on_a_server_that_has_it_not(rig: Rig, image: Image) -> None:
    with RangeServer(image.blobs) as server:
        image.serve_from(server)
        mount = image.mount(rig, "--prefetch", "none")
        server.always = Fault(status=404)
        done = rig.run("prefetch", mount, check=False)
        assert done.returncode == 4, done.stderr
        server.always = Fault()
        rig.run("prefetch", mount)
        assert rig.status()["blobs"][0]["complete"]


def test_a_successor_goes_on_with_a_prefetch(rig: Rig, image: Image) -> None:
    with RangeServer(image.blobs, latency_ms=5, mbps=4) as server:  # 2 s for all of it
        image.serve_from(server)
        mount = image.mount(rig, "--prefetch", "none")
        rig.run("prefetch", mount, "/d2", "/d0", "--no-wait")
        killed = rig.status()
        os.kill(killed["pid"], signal.SIGKILL)
        server.budget = type(server.budget)(0)  # no limit any more
        _wait_until_loaded(rig, SIZE * FILES // 2)
        status = rig.status()
        assert status["pid"] != killed["pid"]
        assert killed["blobs"][0]["present"] < status["blobs"][0]["present"]
        requests = len(server.requests())
        for name in ("d0/f00", "d2/f38"):
            assert (mount / name).read_bytes() == image.contents[name]
        assert len(server.requests()) == requests
        assert not status["blobs"][0]["complete"]
