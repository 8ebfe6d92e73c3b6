"""How many requests readers cost whose order nobody has recorded: counts, no times."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from built import build_image
from rangeserver import RangeServer
from rig import Rig

DIRECTORIES, FILES = 24, 30
SCRIPT_EVERY = 3
LARGE_EVERY = 7  # files; large ones lie between the small ones, as libraries do
MOST_REQUESTS = 60
MOST_OF_A_START = 165
LATENCY_MS, MBPS = 20, 100


class Tree:
    def __init__(self, base: Path) -> None:
        rng = random.Random(17)
        self.contents: dict[str, bytes] = {}
        for number in range(DIRECTORIES * FILES):
            size = rng.randrange(150_000, 900_000) if number % LARGE_EVERY == 5 else (
                rng.randrange(500, 24_000)
            )  # fmt: skip
            name = f"d{number // FILES:02}/f{number % FILES:02}"
            data = rng.randbytes(size)
            if number % SCRIPT_EVERY == 1 and number // FILES % 3:  # another file runs it
                other = rng.randrange(DIRECTORIES * FILES)
                line = f"#!/d{other // FILES:02}/f{other % FILES:02}\n".encode()
                data = line + data[len(line) :]
            self.contents[name] = data
        self.blobs = base / "blobs"
        self.blobs.mkdir()
        self.boot = base / "boot"
        build_image(base / "tree", self.contents, "-B", self.boot, "-D", self.blobs)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return Tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def mounted(rig: Rig, tree: Tree) -> Iterator[Path]:
    with RangeServer(tree.blobs, latency_ms=LATENCY_MS, mbps=MBPS) as server:
        backend = rig.base / "backend.json"
        options = {"scheme": "http", "host": server.host, "repo": "test"}
        backend.write_text(json.dumps({"type": "registry", "registry": options}))
        path = rig.mountpoint()
        rig.run("mount", tree.boot, path, "--backend", backend, "--prefetch", "none")
        yield path


def _cost(rig: Rig) -> tuple[int, int]:
    """(requests, stored bytes)."""
    (blob,) = rig.status()["blobs"]
    return blob["requests"], blob["fetched"]


def test_a_reader_of_everything_is_soon_known_as_one(
    rig: Rig, tree: Tree, mounted: Path
) -> None:
    """As ``cp -r``, ``tar`` and ``grep -r`` read: each request brings what many files need."""
    for name, data in sorted(tree.contents.items()):
        assert (mounted / name).read_bytes() == data
    requests, fetched = _cost(rig)
    stored = sum(p.stat().st_size for p in tree.blobs.iterdir())
    print(f"{requests} requests for {fetched} bytes, {len(tree.contents)} files")
    assert fetched <= 1.01 * stored
    assert requests <= MOST_REQUESTS


def test_a_start_waits_seldom_and_brings_at_most_twice_its_need(
    rig: Rig, tree: Tree, mounted: Path
) -> None:
    """Most files of some directories, in an order of their own."""
    rng = random.Random(5)
    wanted = []
    for number in rng.sample(range(0, DIRECTORIES, 3), DIRECTORIES // 3):
        wanted += [f"d{number:02}/f{file:02}" for file in rng.sample(range(FILES), FILES * 3 // 4)]
    for name in wanted:
        fd = os.open(mounted / name, os.O_RDONLY)
        assert os.pread(fd, 1 << 20, 0) == tree.contents[name]
        os.close(fd)
    requests, fetched = _cost(rig)
    needed = sum(len(tree.contents[n]) for n in wanted)
    print(f"{requests} requests for {len(wanted)} files, {fetched} bytes of {needed}")
    assert fetched <= 2 * needed + (1 << 20)
    assert requests <= MOST_OF_A_START
