"""In the guest: what the kernel has cached goes when there is too much of it, and never what it
uses."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from checks import DISK, GuestRig, drop_caches
from faults import build, umount

MIB = 1 << 20
SIZE = 4 * MIB
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
    assert SIZE <= answer["before"] < 2 * SIZE, answer
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
    rig.run("stop")
    deadline = time.monotonic() + PATIENCE_S
    while rig.processes():
        assert time.monotonic() < deadline, rig.processes()
        time.sleep(0.05)
    rig.run("gc")  # without a daemon
    assert [p.name for d in ("cache", "identities") for p in (root / d).iterdir()] == []
    assert read(used, mount(used)) >= SIZE
    rig.run("umount", points[1])
    return f"{len(would['evicted'])} blobs, {freed} bytes"


CHECKS: dict[str, Callable[[], str]] = {
    "gc has the kernel cull what no mount uses": gc,
}
