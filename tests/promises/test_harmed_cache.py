"""A cache directory that was harmed, or written by another program: right bytes, and a log line."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rig import Rig
from trees import assert_tree

PATIENCE_S = 20
Harm = Callable[[Path], None]


def _first_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _holes(path: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, size)


def _gone(path: Path) -> None:
    path.unlink()


def _of_another(path: Path) -> None:
    os.chown(path, 65534, 65534)
    path.write_bytes(bytes(path.stat().st_size))


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


def _of_another_blob(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(os.urandom(size))


# suffix, what is done to it, and what the log says
HARMS: list[tuple[str, Harm, str]] = [
    ("blob.data.chunk_map", _first_half, "damaged"),
    ("blob.data", _empty, "of another length"),
    ("blob.data", _holes, "copied or changed"),
    ("blob.data", _of_another, "of owner 65534"),
    ("blob.data", _directory, "not a regular file"),
    ("blob.data.chunk_map", _link, "not a regular file"),
    ("identity", _gone, "not by our record"),
    ("identity", _of_another_blob, "not by our record"),
    ("blob.meta", _of_another_blob, "of another blob"),
]


def _blobs(rig: Rig) -> list[str]:
    return sorted(p.name.removesuffix(".blob.data") for p in rig.root.glob("cache/*.blob.data"))


def test_restart_over_a_harmed_cache(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "layers-zstd"
    before: dict[str, bytes] = {}
    for at in range(0, len(HARMS) + 1, 3):  # three blobs: three harms at once, and the last look
        mount = rig.mount(image / "image.boot", image / "blobs")
        assert_tree(mount, image / "expected.jsonl")
        assert not any(b["errors"] for b in rig.status()["blobs"])
        rig.run("stop")
        metas = {p.name: p.read_bytes() for p in rig.root.glob("cache/*.blob.meta")}
        assert metas == (before or metas), "what nydusd reads is mended too"
        before = metas
        log = (rig.root / "daemon.log").read_text()
        for name, (_, _, said) in zip(_blobs(rig), HARMS[max(0, at - 3) : at], strict=False):
            assert re.search(f"{name}.*{said}", log), (name, said)
        (rig.root / "daemon.log").unlink()
        for name, (suffix, harm, _) in zip(_blobs(rig), HARMS[at : at + 3], strict=False):
            harm(rig.root / "cache" / f"{name}.{suffix}")


def test_a_cache_without_our_record_is_verified_and_not_fetched(rig: Rig, golden: Path) -> None:
    """As nydusd leaves one behind: its data, and no identity."""
    image = golden / "images" / "layers-zstd"
    assert_tree(rig.mount(image / "image.boot", image / "blobs"), image / "expected.jsonl")
    rig.run("stop")
    for path in rig.root.glob("cache/*.identity"):
        path.unlink()
    mount = rig.mount(image / "image.boot", image / "blobs")
    assert_tree(mount, image / "expected.jsonl")
    assert rig.fetched() < 100, "but for small neighbours that no file shows"
    assert all(blob["recovered"] for blob in rig.status()["blobs"])


@pytest.mark.parametrize("rig", ["fuse-tree"], indirect=True)  # over fanotify a copier is a reader
def test_a_backup_that_was_made_while_data_came(rig: Rig, golden: Path) -> None:
    """Data are copied first, then more come, then the record is copied: as by rsync or tar, which
    write zeros where holes were."""
    image = golden / "images" / "layers-zstd"
    mount = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    cache, saved = rig.root / "cache", {p: p.read_bytes() for p in rig.root.glob("cache/*.data")}
    assert_tree(mount, image / "expected.jsonl")
    rig.run("stop")
    saved |= {p: p.read_bytes() for p in cache.iterdir() if p not in saved}
    shutil.rmtree(rig.root)
    cache.mkdir(parents=True, mode=0o700)
    for path, content in saved.items():
        path.write_bytes(content)
        path.chmod(0o600)
    (rig.root / "lock").touch(mode=0o600)
    (rig.root / "images").mkdir(mode=0o700)
    rig.root.chmod(0o700)
    assert_tree(rig.mount(image / "image.boot", image / "blobs"), image / "expected.jsonl")
    assert "copied or changed" in (rig.root / "daemon.log").read_text()


def test_private_copies_that_were_changed(rig: Rig, golden: Path) -> None:
    """Of the bootstrap, and of the blobs' metadata."""
    image = golden / "images" / "layers-zstd"
    rig.mount(image / "image.boot", image / "blobs")
    rig.run("stop")
    for path in rig.root.glob("images/**/*"):
        if path.is_file() and (size := path.stat().st_size):
            with path.open("r+b") as f:
                f.seek(size // 2)
                f.write(b"?")
    mount = rig.mount(image / "image.boot", image / "blobs")
    assert_tree(mount, image / "expected.jsonl")


def test_successor_over_a_harmed_cache(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "layers-zstd"
    mount = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    next(p for p in mount.rglob("*.py")).read_bytes()
    pid = rig.status()["pid"]
    suffixes = ("identity", "blob.data.chunk_map", "blob.data")
    for name, suffix in zip(_blobs(rig), suffixes, strict=True):
        _directory(rig.root / "cache" / f"{name}.{suffix}")
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while rig.status()["pid"] == pid:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert_tree(mount, image / "expected.jsonl")
    rig.run("stop")
    # nothing was recorded for data that the next mount does not find
    assert_tree(rig.mount(image / "image.boot", image / "blobs"), image / "expected.jsonl")
