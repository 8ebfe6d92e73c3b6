"""In the guest: the service is killed again and again under readers of cold trees."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from checks import DISK, GuestRig, check
from trees import GOLDEN

KILLS = 20
READERS = 8
PATIENCE_S = 60.0  # for one start of the service
LONGEST_LIFE_S = 0.5  # of a service that readers use
KILLING_S = 200.0  # a machine too busy for KILLS in this time gets fewer, and the report says so
AT_LEAST = 3
TOTAL_S = 400.0
NAMES = ("one-lz4", "chunk-dict", "estargz-ref", "one-encrypted", "one-none-64k")
SHARE = 3  # a reader reads every third file, by chance: hashing is slow here
IMAGES = GOLDEN / "images"
SEED = 20

rig = GuestRig(DISK / "kills")


def wanted(name: str, at: Path) -> list[tuple[str, str]]:
    """Regular files of an image below its mountpoint, with their digests."""
    entries = map(json.loads, (IMAGES / name / "expected.jsonl").read_text().splitlines())
    return [(f"{at}{e['path']}", e["sha256"]) for e in entries if e["type"] == "reg"]


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


def service_pid() -> int:
    """Of a service that answers."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(AssertionError):
            return int(rig.status()["pid"])
        assert time.monotonic() < deadline, f"no service\n{rig.log()}"
        time.sleep(0.05)


def mount_all(round_: int) -> list[Path]:
    """All images cold: in a domain of their own, of which the cache has nothing."""
    from nydus_fscache import kernel

    points = []
    for name in NAMES:
        fsid, domain = f"{name}-{round_}", f"round{round_}"
        rig.run("bind", IMAGES / name / "image.boot", "--blob-dir", IMAGES / name / "blobs",
                "--fsid", fsid, "--domain", domain)
        points.append(rig.mountpoint(fsid))
        kernel.mount_erofs_fsid(points[-1], fsid, domain)
    return points


def killed_under_readers() -> str:
    from nydus_fscache import kernel

    chance = random.Random(SEED)
    kills, rounds, longest = 0, 0, 0.0
    end = time.monotonic() + TOTAL_S
    last = time.monotonic() + KILLING_S
    while kills < KILLS and time.monotonic() < last:
        points = mount_all(rounds)
        files = [f for name, at in zip(NAMES, points, strict=True) for f in wanted(name, at)]
        readers = [start_reader(files, rounds * READERS + i) for i in range(READERS)]
        alive = {pid for pid, _ in readers}
        while alive:
            assert time.monotonic() < end, f"{len(alive)} readers hang after {kills} kills"
            if kills < KILLS and time.monotonic() < last:
                pid = service_pid()
                time.sleep(chance.uniform(0.0, LONGEST_LIFE_S))
                os.kill(pid, signal.SIGKILL)
                kills += 1
                while service_pid() == pid:
                    time.sleep(0.02)
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
            kernel.umount(at)
        rounds += 1
    assert kills >= AT_LEAST, f"{kills} kills only"
    return f"{kills} of {KILLS} kills, {rounds} cold rounds, longest pause {longest:.2f} s"


def killed_while_it_mounts() -> str:
    """The mount waits in the kernel, unkillable, for an answer that the dead cannot give."""
    image = IMAGES / "one-lz4"
    mounted = 0
    for delay in (0.1, 0.4, 0.7, 1.0, 1.5):
        pid = service_pid()
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                rig.mount(image / "image.boot", image / "blobs", "m", "--transport", "cachefiles")
            os._exit(0)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(child, 0)
        assert service_pid() != pid
        if any(m["mounted"] and m["mountpoint"] for m in rig.status()["mounts"]):
            rig.run("umount", rig.base / "m")
            mounted += 1
    rig.mount(image / "image.boot", image / "blobs", "m", "--transport", "cachefiles")
    rig.run("umount", rig.base / "m")
    return f"{mounted} of 5 were mounted"


CHECKS: dict[str, Callable[[], str]] = {
    "the service is killed under readers": killed_under_readers,
    "the service is killed while it mounts": killed_while_it_mounts,
}

if __name__ == "__main__":
    rig.base.mkdir()
    for name, work in CHECKS.items():
        check(name, work, TOTAL_S + PATIENCE_S)
