"""In the guest: the service is killed again and again under readers of cold trees."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import faults
from checks import DISK, IMAGES, START_PATIENCE_S, GuestRig, check_all, wanted

KILLS = 10  # of the service, by kernel; how many of the keeper is said on the command line
READERS = 8
LONGEST_LIFE_S = 1.0
TOTAL_S = 500.0
DELAYS_S = (0.3, 0.8, 1.3)  # from the call of mount to the kill
NAMES = ("one-lz4", "chunk-dict", "estargz-ref", "one-encrypted", "one-none-64k")
SHARE = 3  # a reader reads every third file, by chance: hashing is slow here
chance = random.Random(20)

rig = GuestRig(DISK / "kills")


def read_files(files: list[tuple[str, str]], seed: int) -> tuple[list[str], float]:
    """What was wrong, and the longest time that a system call took."""
    files = random.Random(seed).sample(files, len(files) // SHARE)
    wrong, longest = [], 0.0
    for path, digest in files:
        h = hashlib.sha256()
        at = time.monotonic()
        try:
            fd = os.open(path, os.O_RDONLY)
            while True:
                data = os.read(fd, 1 << 17)
                longest = max(longest, time.monotonic() - at)
                if not data:
                    break
                h.update(data)
                at = time.monotonic()
            os.close(fd)
        except OSError as e:
            wrong.append(f"{path}: {e.strerror}")
            continue
        if h.hexdigest() != digest:
            wrong.append(f"{path}: wrong bytes")
    return wrong, longest


def start_reader(files: list[tuple[str, str]], seed: int) -> tuple[int, int]:
    """(pid, descriptor that its result comes by)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.nice(19)  # two emulated processors, and a service that has to start on them
            os.write(writer, json.dumps(read_files(files, seed)).encode()[:60000])
        finally:
            os._exit(0)
    os.close(writer)
    return pid, reader


def mount_all(round_: str) -> list[Path]:
    """All images cold: in a domain of their own, of which the cache has nothing."""
    from nydus_fscache.kernel.mount import mount_erofs_fsid

    points = []
    for name in NAMES:
        fsid, domain = f"{name}-{round_}", round_
        rig.run("bind", IMAGES / name / "image.boot", "--blob-dir", IMAGES / name / "blobs",
                "--fsid", fsid, "--domain", domain)
        points.append(rig.mountpoint(fsid))
        mount_erofs_fsid(points[-1], fsid, domain)
    return points


def kill_service() -> None:
    """Every other time not before it serves, else at any moment of its start."""
    pid = rig.service_pid() if chance.random() < 0.5 else rig.any_service()
    time.sleep(chance.uniform(0.0, LONGEST_LIFE_S))
    os.kill(pid, signal.SIGKILL)
    while rig.any_service() == pid:
        time.sleep(0.02)


def kill_keeper_then_service() -> None:
    """A new keeper holds everything, so the next death of the service is covered again."""
    keeper = rig.status()["keeper_pid"]
    os.kill(keeper, signal.SIGKILL)
    deadline = time.monotonic() + START_PATIENCE_S
    while rig.status()["keeper_pid"] == keeper:
        assert time.monotonic() < deadline, f"no other keeper\n{rig.log()}"
        time.sleep(0.02)
    rig.kill_service()


def killed_under_readers(kill: Callable[[], None], wanted_kills: int, prefix: str = "") -> str:
    from nydus_fscache.kernel.mount import umount

    kills, rounds, longest = 0, 0, 0.0
    while kills < wanted_kills:
        points = mount_all(f"{prefix}{kill.__name__}{rounds}")
        files = [f for name, at in zip(NAMES, points, strict=True) for f in wanted(name, at)]
        readers = [start_reader(files, rounds * READERS + i) for i in range(READERS)]
        alive = {pid for pid, _ in readers}
        while alive:
            if kills < wanted_kills:
                kill()
                kills += 1
                print(f"kill {kills}, {len(alive)} readers", flush=True)
            else:
                time.sleep(0.05)
            alive -= {p for p in alive if os.waitpid(p, os.WNOHANG)[0]}
        for _, result in readers:
            with os.fdopen(result) as f:
                wrong, pause = json.load(f)
            assert not wrong, f"after {kills} kills: {wrong[:5]} of {len(wrong)}\n{rig.log()}"
            longest = max(longest, pause)
        waiting = rig.status()["requests"]["waiting"]
        assert waiting == 0, f"{waiting} requests are open"
        for at in points:
            umount(at)
        rounds += 1
    return f"{kills} kills, {rounds} cold rounds, longest pause {longest:.2f} s"


def killed_while_it_mounts() -> str:
    """The mount waits in the kernel, unkillable, for an answer that the dead cannot give."""
    image = IMAGES / "one-lz4"
    mounted = 0
    for delay in DELAYS_S:
        pid = rig.service_pid()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                rig.mount(image / "image.boot", image / "blobs", "m", "--transport", "cachefiles")
            os._exit(0)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(child, 0)
        assert rig.service_pid() != pid
        if any(m["mounted"] and m["mountpoint"] for m in rig.status()["mounts"]):
            rig.run("umount", rig.base / "m")
            mounted += 1
    rig.mount(image / "image.boot", image / "blobs", "m", "--transport", "cachefiles")
    rig.run("umount", rig.base / "m")
    return f"{mounted} of {len(DELAYS_S)} were mounted"


def stop(rig: GuestRig) -> None:
    """What was unmounted just now, the kernel lets go of in a moment."""
    deadline = time.monotonic() + 30
    while (done := rig.run("stop", check=False)).returncode:
        print(done.stderr, flush=True)
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    rig.wait_for_end()


def without_restore() -> str:
    """From here on the kernel sends nothing again, and opens no object a second time."""
    subprocess.run(["rmmod", "cachefiles"], check=True, timeout=30)
    subprocess.run(["insmod", "/proc/1/root/mods/cachefiles_old.ko"], check=True, timeout=30)
    device = os.open("/dev/cachefiles", os.O_RDWR)
    try:
        for command in (f"dir {DISK}/old", "bind ondemand"):
            (DISK / "old").mkdir(exist_ok=True)
            os.write(device, command.encode())
        with contextlib.suppress(OSError):
            os.write(device, b"restore")
            raise AssertionError("it has restore")
    finally:
        os.close(device)
    return ""


KEEPER_KILLS = "the keeper is killed under readers, then the service"
CHECKS: dict[str, Callable[[], str]] = {
    "the service is killed under readers": lambda: killed_under_readers(kill_service, KILLS),
    KEEPER_KILLS: lambda: killed_under_readers(kill_keeper_then_service, int(sys.argv[1])),
    "the service is killed while it mounts": killed_while_it_mounts,
}
OLD_CHECKS: dict[str, Callable[[], str]] = {
    "a kernel without restore": without_restore,
    "without restore the service is killed under readers": (
        lambda: killed_under_readers(kill_service, KILLS, "old")
    ),
    "without restore the keeper is killed, then the service": (
        lambda: killed_under_readers(kill_keeper_then_service, int(sys.argv[1]), "old")
    ),
}

if __name__ == "__main__":
    rig.base.mkdir()
    check_all(CHECKS, TOTAL_S)
    stop(rig)
    faults.begin()
    check_all(faults.CHECKS)
    stop(faults.rig)
    check_all(OLD_CHECKS, TOTAL_S)
