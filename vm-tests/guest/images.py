"""In the guest: what one daemon serves over cachefiles, image by image."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import culls
from checks import DISK, IMAGES, GuestRig, check_all, drop_caches, read_all
from trees import assert_tree, golden_names

# tarfs has 512-byte blocks: not over fscache
NAMES = [n for n in golden_names() if n != "tarfs"]
OVER = ("--transport", "cachefiles")
rig = GuestRig(DISK / "images")


def blob_dir(name: str) -> tuple[Path, str, Path]:
    return IMAGES / name / "image.boot", "--blob-dir", IMAGES / name / "blobs"


def mount_by_hand(fsid: str, domain: str, at: Path) -> subprocess.CompletedProcess[str]:
    options = f"fsid={fsid}" + (f",domain_id={domain}" if domain else "")
    return subprocess.run(
        ["mount", "-t", "erofs", "-o", options, "none", str(at)],
        capture_output=True, text=True, timeout=30, check=False,
    )


def stop() -> None:
    """The daemon is gone, and its keeper a moment after it."""
    rig.run("stop")
    deadline = time.monotonic() + 20
    while rig.processes():
        assert time.monotonic() < deadline, rig.processes()
        time.sleep(0.05)


def forget() -> None:
    """Nothing is cached of what is not bound: other images' chunks would be copied."""
    deadline = time.monotonic() + 20
    while any((rig.root / "cachefiles" / "cache").glob("*/*/D*")):
        assert time.monotonic() < deadline, "the kernel still holds something"
        rig.run("gc")
        time.sleep(0.05)


def tree(name: str) -> str:
    forget()
    mount = rig.mount(IMAGES / name / "image.boot", IMAGES / name / "blobs", "m", *OVER)
    try:
        assert_tree(mount, IMAGES / name / "expected.jsonl")
    except OSError as e:
        raise AssertionError(f"{e}\n{rig.log()}") from e
    status = rig.status()
    assert all(b["errors"] == 0 for b in status["blobs"]), status["blobs"]
    assert [m["transport"] for m in status["mounts"]] == ["cachefiles"]
    fetched = rig.fetched()
    rig.run("umount", mount)
    return f"{fetched} bytes fetched"


def doctor() -> str:
    done = rig.run("doctor")
    assert "cachefiles" in done.stdout
    return done.stdout


def by_hand(domain: str) -> None:
    """Bind, mount as a snapshotter would, look, and take it down again."""
    fsid = f"hand{domain}"
    rig.run("bind", *blob_dir("chunk-dict"), "--fsid", fsid,
            *(("--domain", domain) if domain else ()))
    at = rig.mountpoint(fsid)
    done = mount_by_hand(fsid, domain, at)
    assert done.returncode == 0, done.stderr
    assert_tree(at, IMAGES / "chunk-dict" / "expected.jsonl")
    subprocess.run(["umount", str(at)], check=True, timeout=30)
    rig.run("unbind", "--fsid", fsid, *(("--domain", domain) if domain else ()))


def nothing_fetched_before_it_is_read() -> str:
    forget()
    rig.run("bind", *blob_dir("layers-zstd"), "--fsid", "lazy", "--domain", "lazy")
    at = rig.mountpoint("lazy")
    assert mount_by_hand("lazy", "lazy", at).returncode == 0
    subprocess.run(["ls", "-lR", str(at)], stdout=subprocess.DEVNULL, check=True, timeout=30)
    assert rig.fetched() == 0
    small = next(p for p in sorted(at.rglob("*")) if p.is_file() and p.stat().st_size <= 1024)
    small.read_bytes()
    fetched = rig.fetched()
    assert 0 < fetched <= 2 << 20
    requests = rig.requests()
    drop_caches()
    small.read_bytes()
    assert rig.requests() == requests
    subprocess.run(["umount", str(at)], check=True, timeout=30)
    rig.run("unbind", "--fsid", "lazy", "--domain", "lazy")
    return f"{fetched} bytes for one small file"


def shared_domain() -> str:
    """Two images of one domain: what one has fetched, the other does not fetch again."""
    forget()
    points = []
    for fsid in ("first", "second"):
        rig.run("bind", *blob_dir("layers-zstd"), "--fsid", fsid, "--domain", "team")
        points.append(rig.mountpoint(fsid))
        done = mount_by_hand(fsid, "team", points[-1])
        assert done.returncode == 0, done.stderr
    read_all(points[0])
    fetched = rig.fetched()
    assert fetched > 0
    drop_caches()
    assert_tree(points[1], IMAGES / "layers-zstd" / "expected.jsonl")
    assert rig.fetched() == fetched
    subprocess.run(["umount", str(points[0])], check=True, timeout=30)
    drop_caches()
    read_all(points[1])
    assert rig.fetched() == fetched
    subprocess.run(["umount", str(points[1])], check=True, timeout=30)
    for fsid in ("first", "second"):
        rig.run("unbind", "--fsid", fsid, "--domain", "team")
    return f"{fetched} bytes fetched once"


def warm() -> str:
    """Mounted again, by this daemon and by the next: nothing is fetched."""
    boot, _, blobs = blob_dir("layers-zstd")
    for restart in (False, True):
        if restart:
            stop()
        drop_caches()
        mount = rig.mount(boot, blobs, "m", *OVER)
        if restart:
            assert_tree(mount, IMAGES / "layers-zstd" / "expected.jsonl")
        else:
            read_all(mount)
        assert rig.fetched() == 0, rig.status()["blobs"]
        present = sum(b["present"] for b in rig.status()["blobs"])
        assert present > 0
        rig.run("umount", mount)
    return f"{present} bytes were there"


def recorded_and_loaded_ahead() -> str:
    """What a reader wanted is in the trace; a prefetch loads what nobody has read."""
    boot, _, blobs = blob_dir("one-lz4")
    mount = rig.mount(boot, blobs, "m", *OVER, "--prefetch", "none")
    next(p for p in sorted(mount.rglob("*")) if p.is_file() and p.stat().st_size).read_bytes()
    accesses = json.loads(rig.run("trace", mount, "--json").stdout)["accesses"]
    assert accesses
    rig.run("umount", mount)
    mount = rig.mount(boot, blobs, "m", *OVER, "--prefetch", "all")
    deadline = time.monotonic() + 30
    while not all(b["complete"] for b in rig.status()["blobs"]):
        assert time.monotonic() < deadline, rig.status()["blobs"]
        time.sleep(0.1)
    requests = rig.requests()
    assert requests > 0
    assert_tree(mount, IMAGES / "one-lz4" / "expected.jsonl")
    assert rig.requests() == requests
    rig.run("umount", mount)
    return f"{len(accesses)} accesses"


def program() -> str:
    boot, _, blobs = blob_dir("layers-zstd")
    mount = rig.mount(boot, blobs, "m", *OVER)
    done = subprocess.run(
        ["chroot", str(mount), "/usr/bin/python3.11", "/app/main.py"],
        capture_output=True, text=True, timeout=50, check=True,
    )
    rig.run("umount", mount)
    assert done.stdout.strip()
    return done.stdout.strip()


def corrupted_chunk() -> str:
    forget()
    copy = DISK / "corrupt"
    shutil.copytree(IMAGES / "one-lz4", copy)
    (blob,) = (copy / "blobs").iterdir()
    blob.chmod(0o600)
    with blob.open("r+b") as f:
        f.seek(1000)
        f.write(os.urandom(400))
    rig.run("bind", copy / "image.boot", "--blob-dir", copy / "blobs", "--fsid", "corrupt")
    at = rig.mountpoint("corrupt")
    assert mount_by_hand("corrupt", "", at).returncode == 0
    bad = good = 0
    for path in at.rglob("*"):
        if path.is_file() and not path.is_symlink():
            try:
                path.read_bytes()
                good += 1
            except OSError as e:
                if e.errno != errno.EIO:
                    raise
                bad += 1
    assert bad > 0
    assert good > bad
    assert blob.name in rig.log()
    subprocess.run(["umount", str(at)], check=True, timeout=30)
    rig.run("unbind", "--fsid", "corrupt")
    return f"{bad} files EIO, {good} read"


def unknown_fsid() -> str:
    started = time.monotonic()
    at = rig.mountpoint("unknown")
    done = mount_by_hand("nobody-bound-it", "", at)
    assert done.returncode != 0
    rig.run("bind", *blob_dir("one-lz4"), "--fsid", "known", "--domain", "known")
    assert mount_by_hand("nobody-bound-it", "known", at).returncode != 0
    rig.run("unbind", "--fsid", "known", "--domain", "known")
    return f"{time.monotonic() - started:.1f} s"


def same_fsid_for_another_image() -> str:
    """What is cached of the first image's bootstrap must not be shown for the second."""
    at = rig.mountpoint("again")
    for name in ("one-lz4", "one-batch", "one-batch"):
        rig.run("bind", *blob_dir(name), "--fsid", "again")
        done = rig.run("bind", *blob_dir("one-prefetch"), "--fsid", "again", check=False)
        assert done.returncode != 0
        assert mount_by_hand("again", "", at).returncode == 0
        names = {"/" + str(p.relative_to(at)) for p in at.rglob("*")} | {"/"}
        lines = (IMAGES / name / "expected.jsonl").read_text().splitlines()
        assert names == {json.loads(line)["path"] for line in lines}, name
        subprocess.run(["umount", str(at)], check=True, timeout=30)
        deadline = time.monotonic() + 20
        while rig.run("unbind", "--fsid", "again", check=False).returncode:
            assert time.monotonic() < deadline, "still in use"
            time.sleep(0.1)
    return ""


def leaves_nothing() -> str:
    stop()
    os.close(os.open("/dev/cachefiles", os.O_RDWR))
    assert "erofs" not in Path("/proc/mounts").read_text()
    return ""


WARMED = "tree layers-zstd"
CHECKS: dict[str, Callable[[], str | None]] = {
    "doctor": doctor,
    "recorded and loaded ahead": recorded_and_loaded_ahead,
    WARMED: functools.partial(tree, "layers-zstd"),
    "warm": warm,  # of what that has cached
    **{f"tree {name}": functools.partial(tree, name) for name in NAMES},
    "by hand without domain": functools.partial(by_hand, ""),
    "by hand with domain": functools.partial(by_hand, "dom"),
    "nothing is fetched before it is read": nothing_fetched_before_it_is_read,
    "shared domain": shared_domain,
    "program": program,
    "corrupted chunk": corrupted_chunk,
    "unknown fsid": unknown_fsid,
    "the same fsid for another image": same_fsid_for_another_image,
    "leaves nothing": leaves_nothing,
}

if __name__ == "__main__":
    rig.base.mkdir()
    check_all(CHECKS)
    culls.rig.base.mkdir()
    check_all(culls.CHECKS)
