"""Every golden image, mounted by the kernel through the daemon, shows exactly its tree."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from rig import Rig, each_transport
from trees import assert_tree, golden_names

IMAGES = golden_names()


@each_transport
@pytest.mark.parametrize("name", IMAGES)
def test_golden_image_from_a_directory(rig: Rig, golden: Path, name: str) -> None:
    image = golden / "images" / name
    mount = rig.mount(image / "image.boot", image / "blobs")
    assert_tree(mount, image / "expected.jsonl")
    assert all(b["errors"] == 0 for b in rig.status()["blobs"])
    rig.run("umount", mount)
    rig.run("stop")
    assert rig.processes() == []


def test_program_runs_in_a_chroot(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "layers-zstd"
    mount = rig.mount(image / "image.boot", image / "blobs")
    done = subprocess.run(
        ["chroot", str(mount), "/usr/bin/python3.11", "/app/main.py"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip()
    fetched, present = rig.fetched(), sum(b["size"] for b in rig.status()["blobs"])
    assert 0 < fetched < present


def test_nothing_is_fetched_before_it_is_read(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "layers-zstd"
    mount = rig.mount(image / "image.boot", image / "blobs")
    subprocess.run(["ls", "-lR", str(mount)], stdout=subprocess.DEVNULL, check=True, timeout=60)
    assert rig.fetched() == 0
    small = next(p for p in sorted(mount.rglob("*")) if p.is_file() and p.stat().st_size <= 1024)
    small.read_bytes()
    assert 0 < rig.fetched() <= 2 << 20
    requests = rig.requests()
    with small.open("rb") as f:  # a second reader, that the page cache does not help
        import os

        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        f.read()
    assert rig.requests() == requests
