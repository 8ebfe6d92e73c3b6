"""In the guest: what the kernel has cached goes when there is too much of it, and never what it
uses."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from checks import DISK, GuestRig, drop_caches
from faults import build, read_outcome, umount

MIB = 1 << 20
SIZE = MIB
PATIENCE_S = 30.0
OVER = ("--transport", "cachefiles", "--prefetch", "none")
rig = GuestRig(DISK / "culls")


def read(image: Path, at: Path) -> int:
    """Checks the bytes; returns how many were fetched for them."""
    before = rig.fetched()
    drop_caches()
    assert (at / "file").read_bytes() == (image / "tree" / "file").read_bytes(), "wrong bytes"
    return rig.fetched() - before


def mount(image: Path, *more: str) -> Path:
    return rig.mount(image / "image.boot", image / "blobs", image.name, *OVER, *more)


def blob_of(image: Path) -> str:
    (blob,) = (image / "blobs").iterdir()
    return blob.name


def cached() -> set[str]:
    """Blobs and fsids that the kernel has files of."""
    return {path.name[1:] for path in (rig.root / "cachefiles" / "cache").glob("*/*/D*")}


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: {sorted(cached())}\n{rig.log()}"
        time.sleep(0.2)


def wait_until_closed(image: Path) -> None:
    wait_for("closed", lambda: blob_of(image) in cached())


def wait_until_gone(images: list[Path]) -> None:
    wait_for("culled", lambda: not cached() & set(map(blob_of, images)))


def free_bytes() -> int:
    os.sync()
    disk = os.statvfs(DISK)
    return disk.f_bavail * disk.f_frsize


def gc() -> str:
    idle, used, alone = (build(n, i, SIZE) for i, n in enumerate(("idle", "used", "alone")))
    at = mount(used)  # a file has its name in the cache only when it was closed once
    assert read(used, at) > 0
    rig.run("umount", at)
    points = [mount(image) for image in (idle, used)]
    read(idle, points[0])
    rig.run("bind", alone / "image.boot", "--blob-dir", alone / "blobs", "--fsid", "alone")
    at = rig.mountpoint("alone")
    subprocess.run(["mount", "-t", "erofs", "-o", "fsid=alone", "none", str(at)], check=True)
    read(alone, at)
    answer = json.loads(rig.run("gc", "--json").stdout)
    assert answer["evicted"] == [], "all is in use"
    assert answer["before"] >= 3 * SIZE, "what is open counts, too"
    umount(at)
    wait_for("unbind", lambda: not rig.run("unbind", "--fsid", "alone", check=False).returncode)
    rig.run("umount", points[0])
    unused = {blob_of(idle), blob_of(alone), "alone"}
    wait_for("closed", lambda: unused <= cached())
    before = free_bytes()
    would = json.loads(rig.run("gc", "--dry-run", "--json").stdout)
    assert unused <= cached(), "a dry run deletes nothing"

    def culled() -> bool:
        rig.run("gc")
        return not unused & cached()

    wait_for("culled", culled)
    freed = free_bytes() - before
    assert freed >= 2 * SIZE, freed
    assert blob_of(used) in cached()
    assert read(used, points[1]) == 0, "what is mounted is as it was"
    root = rig.root / "cachefiles"
    wait_for("volume", lambda: bool(culled() and not (root / "cache/Ierofs,alone").exists()))
    assert [p.name for p in (root / "identities").iterdir()] == ["nydus-fscache.json"]
    assert list((root / "graveyard").iterdir()) == []
    assert read(idle, mount(idle)) >= SIZE, "it is fetched anew"
    for at in points:
        rig.run("umount", at)
    return f"{len(would['evicted'])} blobs, {freed} bytes"


def copied() -> str:
    """Chunks that the kernel has of a blob that was closed are not fetched for another one."""
    shared = random.Random(30).randbytes(SIZE)
    old, new = (build(n, 30 + i, shared=shared) for i, n in enumerate(("old", "new"), 1))
    at = mount(old)
    assert (at / "shared").read_bytes() == shared
    rig.run("umount", at)
    wait_until_closed(old)
    at = mount(new)
    assert (at / "shared").read_bytes() == shared
    (blob,) = rig.status()["blobs"]
    assert blob["reused"] >= SIZE, blob
    assert read(new, at) > 0
    rig.run("umount", at)
    wait_until_closed(new)
    at = mount(new)
    drop_caches()
    assert (at / "shared").read_bytes() == shared
    assert read(new, at) == 0
    rig.run("umount", at)
    return f"{blob['reused']} bytes copied, {blob['fetched']} fetched"


def limit() -> str:
    """With the second image's data, on top of the first's, there is too much."""
    first, second = (build(n, 10 + i, SIZE) for i, n in enumerate(("first", "second")))
    for image in (first, second):
        at = mount(image, "--cache-limit", "1500K")
        read(image, at)
        if image is second:
            started = time.monotonic()
            wait_until_gone([first])
            took = time.monotonic() - started
        assert read(image, at) == 0, "what is mounted stays"
        rig.run("umount", at)
        wait_until_closed(image)
    return f"kept within {took:.1f} s"


def room() -> str:
    """The disk fills up: the kernel wants room, then takes no more, and is well again."""
    idle, used, late = (build(n, 20 + i, SIZE) for i, n in enumerate(("idle2", "used2", "late")))
    points = [mount(idle, "--cache-limit", "0"), mount(used), mount(late)]
    read(idle, points[0])
    rig.run("umount", points[0])
    wait_until_closed(idle)
    filler = DISK / "filler"
    try:
        leave_free(filler, 0.045)  # it wants culling below 5 %
        read(used, points[1])
        wait_until_gone([idle])
        leave_free(filler, 0.005)  # it takes nothing below 1 %
        started = time.monotonic()
        outcome = read_outcome(points[2] / "file")
        took = time.monotonic() - started
        assert outcome == errno.EIO, outcome
        assert any("ENOSPC" in b["last_error"] for b in rig.status()["blobs"]), rig.status()
    finally:
        filler.unlink()
    assert read(used, points[1]) == 0
    read(late, points[2])
    for at in points[1:]:
        rig.run("umount", at)
    return f"EIO after {took:.1f} s"


def without_daemon() -> str:
    rig.run("stop")
    deadline = time.monotonic() + PATIENCE_S
    while rig.processes():
        assert time.monotonic() < deadline, rig.processes()
        time.sleep(0.05)
    assert cached()
    rig.run("gc")
    root = rig.root / "cachefiles"
    assert [p.name for d in ("cache", "identities") for p in (root / d).iterdir()] == []
    return ""


def leave_free(filler: Path, share: float) -> None:
    disk = os.statvfs(DISK)
    size = filler.stat().st_size if filler.exists() else 0
    more = free_bytes() - int(disk.f_blocks * disk.f_frsize * share)
    with filler.open("ab") as f:
        os.posix_fallocate(f.fileno(), 0, size + more)


CHECKS: dict[str, Callable[[], str]] = {
    "gc has the kernel cull what no mount uses": gc,
    "chunks of the kernel's other files are copied": copied,
    "the kernel's cache stays within the limit": limit,
    "the kernel wants room": room,
    "gc without a daemon": without_daemon,
}
