"""In the guest: images over FUSE on a kernel of the distribution, as it is."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import checks
from checks import DISK, IMAGES, GuestRig, check_all, forget_data, pin_programs, wanted
from rig import read_errno
from trees import assert_tree, golden_names

from nydus_fscache.api import client

NAMES = golden_names()
KILLS = 20
IN_A_ROUND = 10  # then the cache is empty again
READERS = 3
KILLED = ("one-lz4", "chunk-dict")
KILLS_S = 2400.0  # a start takes 5 s here, or 20 on a busy host
READER = """
import hashlib, json, os, random, sys, time
files, dice, stop = json.loads(sys.stdin.readline()), random.Random(int(sys.argv[1])), sys.argv[2]
wrong, longest, reads = [], 0.0, 0
while not os.path.exists(stop):
    path, digest = dice.choice(files)
    at = time.monotonic()
    try:
        with open(path, "rb", buffering=0) as f:
            data = f.read()
    except OSError as e:
        wrong.append(f"{path}: {e.strerror}")
        continue
    longest, reads = max(longest, time.monotonic() - at), reads + 1
    if hashlib.sha256(data).hexdigest() != digest:
        wrong.append(f"{path}: wrong bytes")
print(json.dumps([wrong[:5], longest, reads]))
"""

# How long starts may take is not what is looked at here, and a busy host is ten times slower.
PATIENCE_S = 900.0
for variable in ("NYDUS_FSCACHE_START_S", "NYDUS_FSCACHE_DENY_AFTER_S"):
    os.environ[variable] = str(PATIENCE_S)
client.START_PATIENCE_S = checks.START_PATIENCE_S = client.CALL_PATIENCE_S = PATIENCE_S

rig = GuestRig(DISK / "stock")
chance = random.Random(7)


def mount(name: str, shape: str, at: str = "m") -> Path:
    image = IMAGES / name
    words = ("--transport", shape, "--prefetch", "none")
    return rig.mount(image / "image.boot", image / "blobs", at, *words)


def doctor(shapes: tuple[str, ...]) -> str:
    report = json.loads(rig.run("doctor", "--json").stdout)
    works = [name for name, found in report["transports"].items() if found["ok"]]
    assert works == list(shapes), report
    assert report["auto"] == shapes[0]
    return f"{report['kernel']}: {', '.join(works)}"


def tree(name: str, shape: str) -> str:
    at = mount(name, shape, f"{name}-{shape}")
    try:
        assert_tree(at, IMAGES / name / "expected.jsonl")
        mounts = [m for m in rig.status()["mounts"] if m["mountpoint"] == str(at)]
        assert [m["transport"] for m in mounts] == [shape]
        return f"{rig.fetched()} bytes fetched"
    finally:
        rig.run("umount", at)


def empty_cache() -> None:
    stop()
    for path in (rig.root / "cache").iterdir():
        path.unlink()


def stop() -> None:
    deadline = time.monotonic() + 30
    while rig.run("stop", check=False).returncode and time.monotonic() < deadline:
        time.sleep(0.2)
    rig.wait_for_end()


def start_reader(files: list[tuple[str, str]], seed: int, stop: Path) -> subprocess.Popen[bytes]:
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(seed), str(stop)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert reader.stdin is not None
    reader.stdin.write(json.dumps(files).encode() + b"\n")
    reader.stdin.close()
    reader.stdin = None
    return reader


def killed_under_readers(shape: str) -> str:
    """Readers never rest, and the kernel forgets before each kill: to begin a tree anew for each
    would take longer than all kills."""
    reads, longest, pinned = 0, 0.0, pin_programs()
    for first in range(0, KILLS, IN_A_ROUND):
        stop_file = DISK / f"{shape}-{first}"
        points = [(name, mount(name, shape, f"{name}-{shape}")) for name in KILLED]
        files = [f for name, at in points for f in wanted(name, at)]
        readers = [start_reader(files, first + i, stop_file) for i in range(READERS)]
        for _ in range(IN_A_ROUND):
            pid = rig.service_pid()  # one that never serves is another promise
            forget_data()
            time.sleep(chance.uniform(0.0, 1.0))
            os.kill(pid, signal.SIGKILL)
            while rig.any_service() == pid:
                time.sleep(0.02)
        rig.service_pid()
        stop_file.touch()
        for reader in readers:
            wrong, pause, count = json.loads(reader.communicate()[0])
            assert not wrong, f"after {first + IN_A_ROUND} kills: {wrong}\n{rig.log()}"
            longest, reads = max(longest, pause), reads + count
        for _, at in points:
            rig.run("umount", at)
        empty_cache()
    del pinned
    return f"{KILLS} kills, {reads} files read, longest read of a file {longest:.2f} s"


def everything_killed(shape: str) -> str:
    """An error for readers, never zeros; the next start mounts again."""
    at = mount("one-lz4", shape)
    files = wanted("one-lz4", at)
    rig.kill_at_once()
    failed = {read_errno(Path(path)) for path, _ in files}
    assert failed <= {0, errno.EIO, errno.ENOTCONN, errno.ECONNABORTED}
    assert failed - {0}, "nothing is an error"
    other = mount("chunk-dict", shape, "other")
    rig.wait_until_mounted(at)
    assert_tree(at, IMAGES / "one-lz4" / "expected.jsonl")
    rig.run("umount", at)
    rig.run("umount", other)
    empty_cache()
    return f"errors: {sorted(failed)}"


def checks_of(shapes: tuple[str, ...]) -> dict[str, Callable[[], str]]:
    found: dict[str, Callable[[], str]] = {"doctor": lambda: doctor(shapes)}
    for shape in shapes:
        for name in NAMES:
            found[f"{name} over {shape}"] = lambda name=name, shape=shape: tree(name, shape)
    for shape in shapes:  # last: what is left of one that fails harms the others
        found[f"{shape}: everything is killed"] = lambda shape=shape: everything_killed(shape)
        found[f"{shape}: the service is killed under readers"] = (
            lambda shape=shape: killed_under_readers(shape)
        )
    return found


if __name__ == "__main__":
    DISK.joinpath("stock").mkdir()
    check_all(checks_of(tuple(sys.argv[1:])), KILLS_S)
