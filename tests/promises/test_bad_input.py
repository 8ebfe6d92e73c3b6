"""What is wrong is said, with a remedy and a documented exit code, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from rig import Rig, mounts_below, read_errno, regular_files
from unprivileged import CLI_AS_NOBODY

from nydus_fscache.api.client import Client
from nydus_fscache.errors import FscacheError

USAGE, IMAGE, BACKEND, KERNEL, MOUNTPOINT, PRIVILEGE, CACHE = 2, 3, 4, 5, 6, 7, 8


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


def test_format_allows_and_kernel_refuses(rig: Rig, golden: Path) -> None:
    """Larger directory blocks: a field of the format that no kernel has taken up. Its own words."""
    boot, blob = _copy(golden, rig.base)
    _poke(boot, 1024 + 90, b"\1")
    _refused(
        rig, KERNEL, "dirblkbits 1 isn't supported", "mount", boot, rig.mountpoint(),
        "--blob-dir", blob.parent,
    )  # fmt: skip


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


def test_places_that_would_make_the_daemon_wait_for_itself(rig: Rig, golden: Path) -> None:
    boot, blob = _copy(golden, rig.base)
    (rig.root / "cache" / "below").mkdir(parents=True)
    rig.root.chmod(0o700)
    (rig.base / "link").symlink_to(rig.root / "cache")
    for target in (rig.root, rig.base, rig.root / "cache", rig.root / "cache" / "below"):
        words = ("mount", boot, target, "--blob-dir", blob.parent)
        _refused(rig, USAGE, "own files", *words)
    for blobs in (rig.root / "cache", rig.base / "link"):
        _refused(rig, USAGE, "in the cache", "mount", boot, rig.mountpoint(), "--blob-dir", blobs)
    mount = rig.mount(boot, blob.parent, "m")
    done = rig.run("mount", boot, rig.mountpoint("n"), "--blob-dir", mount, check=False)
    assert done.returncode == USAGE, done.stderr
    assert "on a mount of this daemon" in done.stderr
    assert regular_files(mount)[0].read_bytes() is not None


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


@pytest.mark.parametrize("command", ["mount", "umount", "status", "serve", "stop"])
def test_not_root(rig: Rig, golden: Path, command: str) -> None:
    image = golden / "images" / "one-lz4"
    words = {
        "mount": [image / "image.boot", rig.mountpoint(), "--blob-dir", image / "blobs"],
        "umount": [rig.mountpoint()],
    }.get(command, [])
    done = subprocess.run(
        [*CLI_AS_NOBODY, command, "--root", rig.root, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == PRIVILEGE, done.stderr
    assert "root" in done.stderr
    assert "hint: " in done.stderr
    assert not rig.root.exists()


def test_corrupted_chunk_is_eio_and_named(rig: Rig, golden: Path) -> None:
    boot, blob = _copy(golden, rig.base)
    mount = rig.mount(boot, blob.parent)
    _poke(blob, 1000, os.urandom(400))
    outcomes = [read_errno(path) for path in regular_files(mount)]
    assert set(outcomes) == {0, errno.EIO}
    assert outcomes.count(0) > outcomes.count(errno.EIO)
    assert blob.name in rig.log()
    assert "digest" in rig.log()


def test_kernel_without_the_transport(rig: Rig, golden: Path) -> None:
    if Path("/dev/cachefiles").exists():
        pytest.skip("this machine has /dev/cachefiles")
    image = golden / "images" / "one-lz4"
    _refused(
        rig, KERNEL, "/dev/cachefiles", "mount", image / "image.boot", rig.mountpoint(),
        "--blob-dir", image / "blobs", "--transport", "cachefiles",
    )  # fmt: skip


def test_cache_on_overlayfs(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "one-lz4"
    for name in ("lower", "upper", "work", "root"):
        (rig.base / name).mkdir()
    layers = ",".join(f"{n}dir={rig.base / n}" for n in ("lower", "upper", "work"))
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "none", str(rig.root)], check=True)
    try:
        done = rig.run(
            "mount", image / "image.boot", rig.mountpoint(), "--blob-dir", image / "blobs",
            check=False,
        )  # fmt: skip
        assert done.returncode == CACHE, done.stderr
        assert "overlayfs" in done.stderr
        assert "hint: " in done.stderr
        assert rig.processes() == []
        assert list(rig.root.iterdir()) == []
    finally:
        subprocess.run(["umount", str(rig.root)], check=True)


def test_flipped_bits(rig: Rig, golden: Path) -> None:
    """A flip is found, or it changes what no check can know; the daemon serves on in any case."""
    boot, blob = _copy(golden, rig.base)
    rig.mount(boot, blob.parent)
    pid = rig.status()["pid"]
    client, point = Client(rig.root), rig.mountpoint("flipped")
    request = {
        "bootstrap": str(rig.base / "flipped.boot"),
        "backend": {"type": "localfs", "localfs": {"dir": str(blob.parent)}},
        "mountpoint": str(point),
    }
    original, refusals = boot.read_bytes(), list[FscacheError]()
    for n in range(150):
        damaged = bytearray(original)
        # every bit of the super blocks' first fields, then spread over the file
        at = 1024 + n if n < 100 else (n - 100) * len(original) // 50
        damaged[at] ^= 1 << n % 8
        Path(request["bootstrap"]).write_bytes(damaged)
        try:
            client.call("POST", "/v1/mounts", request)
        except FscacheError as e:
            refusals.append(e)
        else:
            client.call("DELETE", "/v1/mounts", mountpoint=str(point))
    assert len(refusals) > 30
    assert {e.exit_code for e in refusals} <= {IMAGE, BACKEND, KERNEL}, refusals
    assert all(e.hint for e in refusals)
    assert rig.status()["pid"] == pid
    assert [m["mountpoint"] for m in rig.status()["mounts"] if m["mounted"]] == [
        str(rig.base / "m")
    ]


def test_state_of_another_version(rig: Rig, golden: Path) -> None:
    """The daemon cannot start; its reason reaches the user, and the file that carried it goes."""
    image = golden / "images" / "one-lz4"
    rig.root.mkdir(mode=0o700)
    (rig.root / "state.json").write_text('{"version": 999}')
    words = (image / "image.boot", rig.mountpoint(), "--blob-dir", image / "blobs")
    _refused(rig, CACHE, "version 999", "mount", *words)
    assert rig.leftovers() == []
