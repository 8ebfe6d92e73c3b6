"""What is wrong is said, with a remedy and a documented exit code, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from rig import Rig, mounts_below

IMAGE, BACKEND, KERNEL, MOUNTPOINT, PRIVILEGE, CACHE = 3, 4, 5, 6, 7, 8


def _refused(rig: Rig, code: int, text: str, *args: str | Path) -> None:
    done = rig.run(*args, check=False)
    assert done.returncode == code, done.stderr
    assert text in done.stderr, done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr
    assert rig.processes() == [], "the daemon that was started for it is gone"
    assert mounts_below(rig.base) == []
    assert not (rig.root / "api.sock").exists()


def _copy(golden: Path, base: Path, name: str = "one-lz4") -> tuple[Path, Path]:
    shutil.copytree(golden / "images" / name, base / "image")
    for path in (base / "image").rglob("*"):
        path.chmod(0o700)
    (blob,) = (base / "image" / "blobs").iterdir()
    return base / "image" / "image.boot", blob


def _poke(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as f:
        f.seek(at)
        f.write(data)


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (1024, b"\0\0\0\0"),  # wrong magic
        (1036, b"\x1f"),  # an impossible block size
        (1112, struct.pack("<Q", 1 << 40)),  # blob table outside
        (1152 + 24, struct.pack("<QQ", 1 << 50, 80)),  # chunk table outside
        (1038, b"\xff\xff"),  # root nid outside
    ],
)
def test_damaged_bootstrap(rig: Rig, golden: Path, at: int, data: bytes) -> None:
    boot, blob = _copy(golden, rig.base)
    _poke(boot, at, data)
    _refused(
        rig, IMAGE, "bootstrap", "mount", boot, rig.mountpoint(), "--blob-dir", blob.parent
    )


def test_truncated_bootstrap(rig: Rig, golden: Path) -> None:
    boot, blob = _copy(golden, rig.base)
    os.truncate(boot, boot.stat().st_size - 8192)
    _refused(
        rig, IMAGE, "bootstrap", "mount", boot, rig.mountpoint(), "--blob-dir", blob.parent
    )


def test_rafs_v5(rig: Rig) -> None:
    boot = rig.base / "v5.boot"
    boot.write_bytes(struct.pack("<III", 0x52414653, 0x500, 8192).ljust(8192, b"\0"))
    _refused(rig, IMAGE, "v5", "mount", boot, rig.mountpoint(), "--blob-dir", rig.base)


def test_missing_blob(rig: Rig, golden: Path) -> None:
    boot, blob = _copy(golden, rig.base)
    blob.unlink()
    _refused(
        rig, BACKEND, blob.name, "mount", boot, rig.mountpoint(), "--blob-dir", blob.parent
    )


def test_blob_shorter_than_its_table(rig: Rig, golden: Path) -> None:
    boot, blob = _copy(golden, rig.base, "tarfs")
    os.truncate(blob, blob.stat().st_size // 2)
    _refused(
        rig, BACKEND, blob.name, "mount", boot, rig.mountpoint(), "--blob-dir", blob.parent
    )


def test_mountpoint_missing_and_busy(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "one-lz4"
    blobs = ("--blob-dir", image / "blobs")
    boot = image / "image.boot"
    _refused(rig, MOUNTPOINT, "does not exist", "mount", boot, rig.base / "none", *blobs)
    busy = rig.mountpoint("busy")
    subprocess.run(["mount", "-t", "tmpfs", "none", str(busy)], check=True)
    try:
        done = rig.run("mount", boot, busy, *blobs, check=False)
        assert done.returncode == MOUNTPOINT
        assert "busy" in done.stderr
        assert rig.processes() == []
    finally:
        subprocess.run(["umount", str(busy)], check=True)


def test_cache_on_tmpfs(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "one-lz4"
    rig.root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(rig.root)], check=True)
    try:
        done = rig.run(
            "mount", image / "image.boot", rig.mountpoint(), "--blob-dir", image / "blobs",
            check=False,
        )
        assert done.returncode == CACHE, done.stderr
        assert "tmpfs" in done.stderr
        assert rig.processes() == []
    finally:
        subprocess.run(["umount", str(rig.root)], check=True)


def test_not_root(rig: Rig) -> None:
    as_nobody = (
        "import os, sys\n"
        "from nydus_fscache.cli.main import main\n"
        "from nydus_fscache import probe\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", as_nobody, "mount", "--root", str(rig.root), "x", "/mnt"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == PRIVILEGE, done.stderr
    assert "hint: " in done.stderr
    assert not rig.root.exists()


def test_corrupted_chunk_is_eio_and_named(rig: Rig, golden: Path) -> None:
    boot, blob = _copy(golden, rig.base)
    mount = rig.mount(boot, blob.parent)
    big = max((p for p in mount.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    _poke(blob, 1000, os.urandom(400))
    bad = good = 0
    errors = set()
    for path in mount.rglob("*"):
        if not path.is_file() or path.is_symlink():
            continue
        try:
            path.read_bytes()
            good += 1
        except OSError as e:
            errors.add(e.errno)
            bad += 1
    assert errors == {errno.EIO}
    assert bad > 0
    assert good > bad
    assert big.exists()
    assert blob.name in rig.log()
    assert "digest" in rig.log()
