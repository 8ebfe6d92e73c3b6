"""The cache stays in bounds: limits, garbage collection, and a disk that is really full."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from built import build_image
from model import until
from rig import Rig

MIB = 1 << 20
PATIENCE_S = 30


def _image(base: Path, seed: int, mib: int) -> tuple[Path, Path]:
    """(bootstrap, blob directory) of an image with ``mib`` files of 1 MiB that do not compress."""
    out = base / f"image{seed}"
    out.mkdir()
    rng = random.Random(seed)
    contents = {f"f{i:02}": rng.randbytes(MIB) for i in range(mib)}
    build_image(base / f"tree{seed}", contents, "-B", out / "boot", "-D", out)
    return out / "boot", out


def _read_all(mount: Path) -> None:
    for path in sorted(mount.iterdir()):
        path.read_bytes()


def _cached(rig: Rig) -> int:
    return len(list((rig.root / "cache").glob("*.blob.data")))


def test_least_recently_used_goes_first_and_what_is_mounted_never(
    rig: Rig, tmp_path: Path
) -> None:
    images = [_image(tmp_path, seed, 4) for seed in range(3)]
    for number, (bootstrap, blobs) in enumerate(images):
        mount = rig.mount(bootstrap, blobs, f"m{number}")
        _read_all(mount)
    rig.run("umount", tmp_path / "m1")
    rig.run("umount", tmp_path / "m0")
    assert json.loads(rig.run("gc", "--dry-run", "--json").stdout)["dry_run"]
    assert _cached(rig) == 3
    # 12 MiB are there: image 1 was used before image 0, and is enough to delete
    answer = json.loads(rig.run("gc", "--to", "9M", "--json").stdout)
    assert len(answer["evicted"]) == 1
    assert not list((rig.root / "cache").glob(f"{answer['evicted'][0]['name']}*"))
    rig.run("umount", tmp_path / "m2")
    mount = rig.mount(*images[0], "m0")
    assert (mount / "f03").read_bytes() == (tmp_path / "tree0/f03").read_bytes()
    assert rig.fetched() == 0  # image 0 was kept
    rig.run("gc")
    assert _cached(rig) == 1
    rig.run("stop")
    for path in (rig.root / "images").iterdir():
        os.utime(path, (0, 0))
    gone = json.loads(rig.run("gc", "--json").stdout)["images"]  # without a daemon
    assert _cached(rig) == 0
    assert gone
    assert {p.suffix for p in (rig.root / "images").iterdir()} == {".trace"}


def test_a_limit_is_kept_and_survives_the_daemon(rig: Rig, tmp_path: Path) -> None:
    images = [_image(tmp_path, seed, 4) for seed in range(3)]
    mount = rig.mount(*images[0], "m", "--cache-limit", "6M")
    _read_all(mount)
    rig.run("stop")
    for bootstrap, blobs in images[1:]:
        mount = rig.mount(bootstrap, blobs)
        _read_all(mount)  # with the mounted one it is too much: the other goes
        deadline = time.monotonic() + PATIENCE_S
        while _cached(rig) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        _read_all(mount)
        rig.run("umount", mount)
    assert json.loads((rig.root / "state.json").read_text())["cache_limit"] == 6 * MIB


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    image, target = tmp_path / "disk", tmp_path / "small"
    with image.open("wb") as f:
        f.truncate(24 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
    target.mkdir()
    subprocess.run(["mount", "-o", "loop", image, target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", "-l", target], check=False)


def test_a_full_disk_is_an_error_of_the_reader_and_heals(tmp_path: Path, small_disk: Path) -> None:
    bootstrap, blobs = _image(tmp_path, 7, 16)
    rig = Rig(small_disk)
    try:
        filler = small_disk / "filler"
        mount = rig.mount(bootstrap, blobs, "m", "--prefetch", "none")
        with filler.open("wb") as f, contextlib.suppress(OSError):
            space = os.statvfs(small_disk)
            f.write(bytes(max(0, space.f_bavail * space.f_bsize - 6 * MIB)))
        assert (mount / "f00").read_bytes() == (tmp_path / "tree7/f00").read_bytes()
        refused = 0
        for i in range(1, 16):
            try:
                data = (mount / f"f{i:02}").read_bytes()
            except OSError as e:
                if e.errno not in (errno.ENOSPC, errno.EIO):
                    raise
                refused += 1
            else:
                assert data == (tmp_path / f"tree7/f{i:02}").read_bytes()
        assert refused
        assert "ENOSPC" in rig.status()["blobs"][0]["last_error"]
        filler.unlink()
        for i in range(16):
            assert (mount / f"f{i:02}").read_bytes() == (tmp_path / f"tree7/f{i:02}").read_bytes()
        rig.run("stop")
        # what the daemon recorded is there, and true
        mount = rig.mount(bootstrap, blobs)
        for i in range(16):
            assert (mount / f"f{i:02}").read_bytes() == (tmp_path / f"tree7/f{i:02}").read_bytes()
        assert rig.fetched() == 0
    finally:
        with contextlib.suppress(OSError):
            (small_disk / "filler").unlink()
        rig.run("stop", check=False)
        rig.clean()


def test_a_mount_that_was_moved_while_the_disk_is_full_is_known_to_a_successor(
    tmp_path: Path, small_disk: Path
) -> None:
    """The record of its new place has room of its own; its old place leads nowhere."""
    bootstrap, blobs = _image(tmp_path, 8, 2)
    rig = Rig(small_disk)

    def places() -> list[str]:
        return [m["mountpoint"] for m in rig.status()["mounts"] if m["mounted"]]

    (small_disk / "at").mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "private", small_disk / "at"], check=True)
        subprocess.run(["mount", "--make-private", small_disk / "at"], check=True)
        mount, moved = rig.mount(bootstrap, blobs, "at/m"), small_disk / "at/moved"
        moved.mkdir()
        _read_all(mount)
        until((rig.root / "state.reserve").exists, "room is set aside")
        with (small_disk / "filler").open("wb") as f, contextlib.suppress(OSError):
            while True:
                f.write(bytes(4096))
                f.flush()
        subprocess.run(["mount", "--move", mount, moved], check=True)
        until(lambda: places() == [str(moved)], "the daemon sees that it was moved")
        pid = rig.status()["pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: rig.status()["pid"] != pid, "there is a successor")
        assert places() == [str(moved)]
        _read_all(moved)
        rig.run("umount", moved)
    finally:
        (small_disk / "filler").unlink(missing_ok=True)
        rig.run("stop", check=False)
        subprocess.run(["umount", "-R", small_disk / "at"], check=False)
        rig.clean()
