"""Over FUSE: errors instead of zeros when everything is lost, readers that can be killed, umounts
that nobody has to serve, and nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cold import service, successor
from rangeserver import RangeServer
from rig import FUSE, Rig, read_errno, regular_files
from trees import assert_tree

from nydus_fscache.api.client import Client
from nydus_fscache.kernel.mountinfo import mount_id_at

pytestmark = pytest.mark.parametrize("rig", FUSE, indirect=True)

PATIENCE_S = 60


def connections() -> set[str]:
    """Of the machine: fusectl lists them where it is mounted, the mount table never does."""
    return {p.name for p in Path("/sys/fs/fuse/connections").glob("*")}


@pytest.fixture
def slow(rig: Rig, golden: Path) -> Iterator[tuple[RangeServer, list[str | Path]]]:
    """A backend, and the words of a mount from it."""
    image = golden / "images" / "layers-zstd"
    with RangeServer(image / "blobs", latency_ms=5, mbps=4, keep_seen=False) as server:
        backend = rig.base / "backend.json"
        table = {"addr": server.url, "path": "/blobs"}
        backend.write_text(json.dumps({"type": "http-proxy", "http-proxy": table}))
        words = ["mount", image / "image.boot", rig.mountpoint(), "--backend", backend]
        yield server, [*words, "--prefetch", "none"]


def stop_service(rig: Rig) -> int:
    pid, _ = service(rig)
    os.kill(pid, signal.SIGSTOP)
    return pid


def start_reader(path: Path) -> subprocess.Popen[bytes]:
    code = "import os, sys; f = os.open(sys.argv[1], 0)\nwhile os.read(f, 1 << 20): pass"
    return subprocess.Popen([sys.executable, "-c", code, str(path)], stderr=subprocess.DEVNULL)


def largest(mount: Path) -> Path:
    return max(regular_files(mount), key=lambda p: p.stat().st_size)


def test_nothing_of_fuse_can_be_seen(rig: Rig, golden: Path) -> None:
    before = connections()
    image = golden / "images" / "layers-zstd"
    for name in ("m", "n"):
        mount = rig.mount(image / "image.boot", image / "blobs", name)
        assert mount.stat().st_dev != rig.base.stat().st_dev
    assert "fuse" not in {
        line.split(" - ")[1].split()[0]
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if str(rig.base) in line
    }
    for name in ("m", "n"):
        assert_tree(rig.base / name, image / "expected.jsonl")
        rig.run("umount", rig.base / name)
    rig.run("stop")
    assert rig.leftovers() == []
    assert connections() == before


def test_lost_daemon_is_an_error_and_never_zeros(rig: Rig, golden: Path) -> None:
    """Everything of ours is killed at once; the next start mounts again."""
    image = golden / "images" / "one-lz4"
    mount = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    files = regular_files(mount)
    rig.kill_at_once()
    # the ring of io_uring lets go of the connection a moment after its process has ended
    refused = {errno.EIO, errno.ENOTCONN, errno.ECONNABORTED}
    assert {read_errno(path) for path in files} <= {0, *refused}
    assert read_errno(largest_of(files)) != 0
    rig.mount(image / "image.boot", image / "blobs", "other")
    rig.wait_until_mounted(mount)
    assert_tree(mount, image / "expected.jsonl")
    rig.run("umount", mount)
    rig.run("umount", rig.base / "other")
    rig.run("stop")
    assert rig.leftovers() == []


def largest_of(files: list[Path]) -> Path:
    """Whose size can still be told: metadata that were read stay in memory."""
    sizes = {}
    for path in files:
        with contextlib.suppress(OSError):
            sizes[path] = path.stat().st_size
    return max(sizes, key=lambda path: sizes[path])


def test_mounts_of_the_same_moment_have_connections_of_their_own(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "one-lz4"
    mounts = [rig.mount(image / "image.boot", image / "blobs", "m0", "--prefetch", "none")]
    mounts += [rig.mountpoint(f"m{n}") for n in range(1, 9)]
    began = threading.Barrier(len(mounts) - 1)

    def mount(at: Path) -> None:
        backend = {"type": "localfs", "localfs": {"dir": str(image / "blobs")}}
        request = {"bootstrap": str(image / "image.boot"), "backend": backend}
        request |= {"mountpoint": str(at), "transport": rig.transport, "prefetch": "none"}
        began.wait()
        Client(rig.root).call("POST", "/v1/mounts", request)

    with ThreadPoolExecutor(len(mounts)) as pool:
        list(pool.map(mount, mounts[1:]))
    for at in mounts:
        assert_tree(at, image / "expected.jsonl")
        rig.run("umount", at)
    rig.run("stop")
    assert rig.leftovers() == []


def test_pages_are_not_kept_twice(rig: Rig, golden: Path) -> None:
    """EROFS and the FUSE file below it each keep what was read, until all of a blob is there."""
    if rig.transport == "fuse-tree":
        pytest.skip("fuse-tree keeps pages once")
    image = golden / "images" / "one-lz4"
    mount = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    big = largest(mount)

    def asked_again() -> int:
        """READs that reading a file causes when EROFS has forgotten it."""
        before = rig.status()["requests"]["events"]
        with big.open("rb") as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            f.read()
        events: int = rig.status()["requests"]["events"]
        return events - before

    big.read_bytes()
    deadline = time.monotonic() + PATIENCE_S
    while asked_again():  # what is read ahead comes a moment later
        assert time.monotonic() < deadline, "FUSE forgets it by itself"
    rig.run("prefetch", mount)
    while "kept once" not in rig.log():
        assert time.monotonic() < deadline, rig.log()
        time.sleep(0.1)
    while not asked_again():  # the process that drops them has begun
        assert time.monotonic() < deadline, "FUSE has not forgotten it"
    assert_tree(mount, image / "expected.jsonl")
    rig.run("umount", mount)


def test_a_complete_image_goes_to_the_first_transport_at_its_next_mount(
    rig: Rig, golden: Path
) -> None:
    """What was fetched over one is there for the other, which needs us less."""
    image = golden / "images" / "one-lz4"
    mount = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "all")
    deadline = time.monotonic() + PATIENCE_S
    while not all(blob["complete"] for blob in rig.status()["blobs"]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    rig.run("umount", mount)
    wanted = json.loads(rig.run("doctor", "--json").stdout)["auto"]
    rig.mount(image / "image.boot", image / "blobs", "m", "--transport", "auto")
    assert [m["transport"] for m in rig.status()["mounts"]] == [wanted]
    assert_tree(mount, image / "expected.jsonl")
    assert rig.fetched() == 0
    rig.run("umount", mount)


def test_a_reader_that_waits_can_be_killed(
    rig: Rig, golden: Path, slow: tuple[RangeServer, list[str | Path]]
) -> None:
    """And its request harms nobody: the others get their bytes."""
    rig.run(*map(str, slow[1]))
    mount = rig.mountpoint()
    files = sorted(regular_files(mount), key=lambda p: -p.stat().st_size)  # metadata are ours too
    pid = stop_service(rig)
    readers = [start_reader(path) for path in files[:10]]
    try:
        time.sleep(1)
        assert all(reader.poll() is None for reader in readers)
        for reader in readers:
            reader.kill()
        for reader in readers:
            assert reader.wait(timeout=5) == -signal.SIGKILL
    finally:
        os.kill(pid, signal.SIGCONT)
    assert_tree(mount, golden / "images" / "layers-zstd" / "expected.jsonl")
    rig.run("umount", mount)


def test_umount_while_nobody_serves(
    rig: Rig, slow: tuple[RangeServer, list[str | Path]]
) -> None:
    """umount(2) returns at once; from a block device, where a read is nobody's own, with the next
    service.  (umount(8) asks a FUSE mount for its statistics before, and waits as well.)"""
    rig.run(*map(str, slow[1]))
    mount = rig.mountpoint()
    big = largest(mount)
    pid = stop_service(rig)
    reader = start_reader(big)
    try:
        time.sleep(0.5)
        reader.kill()
        reader.wait(timeout=5)
        code = f"import ctypes; exit(-ctypes.CDLL(None).umount2({os.fsencode(mount)!r}, 0))"
        umount = subprocess.Popen([sys.executable, "-c", code])
        if rig.transport != "fuse-loop":
            assert umount.wait(timeout=10) == 0
    finally:
        os.kill(pid, signal.SIGCONT)
    assert umount.wait(timeout=PATIENCE_S) == 0
    deadline = time.monotonic() + PATIENCE_S
    while rig.status()["mounts"]:
        assert time.monotonic() < deadline, "the end of the superblock is not seen"
        time.sleep(0.1)
    rig.run("stop")
    assert rig.leftovers() == []


def test_a_mount_that_fails_leaves_nothing(rig: Rig, golden: Path) -> None:
    before = connections()
    image = golden / "images" / "one-lz4"
    other = rig.mount(image / "image.boot", image / "blobs", "other")
    missing = rig.base / "missing"
    words = ("mount", image / "image.boot", missing, "--blob-dir", image / "blobs")
    done = rig.run(*words, check=False)
    assert done.returncode != 0
    assert_tree(other, image / "expected.jsonl")
    rig.run("umount", other)
    rig.run("stop")
    assert rig.leftovers() == []
    assert connections() == before


def test_service_killed_while_it_mounts(
    rig: Rig, golden: Path, slow: tuple[RangeServer, list[str | Path]]
) -> None:
    """At any moment: what is mounted then is served, and nothing hangs."""
    image = golden / "images" / "layers-zstd"
    first = rig.mount(image / "image.boot", image / "blobs", "first")
    for pause in (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5):
        pid, _ = service(rig)
        mounting = rig.start(*map(str, slow[1]))
        time.sleep(pause)
        os.kill(pid, signal.SIGKILL)
        successor(rig, pid)
        mounting.wait(timeout=PATIENCE_S)
        rig.status()
        if os.path.ismount(rig.mountpoint()):
            assert_tree(rig.mountpoint(), image / "expected.jsonl")
            subprocess.run(["umount", str(rig.mountpoint())], check=True, timeout=20)
    assert_tree(first, image / "expected.jsonl")
    rig.run("umount", first)
    deadline = time.monotonic() + PATIENCE_S
    while rig.run("stop", check=False).returncode:
        assert time.monotonic() < deadline, rig.log()
        time.sleep(0.2)
    assert rig.leftovers() == []


def test_a_mount_that_never_came_takes_no_other_for_its_own(rig: Rig, golden: Path) -> None:
    """A service that was killed while it mounted has it on record; the call was made again."""
    image = golden / "images" / "one-lz4"
    mount = rig.mount(image / "image.boot", image / "blobs")
    before = mount_id_at(mount)
    pid, keeper = service(rig)
    os.kill(keeper, signal.SIGSTOP)
    try:
        os.kill(pid, signal.SIGKILL)
        state = json.loads((rig.root / "state.json").read_text())
        (made,) = state["bindings"]
        dead = {**made, "mount": {}, "address": {"number": str(int(made["address"]["number"]) + 1)}}
        state["bindings"] = [dead, made]
        (rig.root / "state.json").write_text(json.dumps(state))
    finally:
        os.kill(keeper, signal.SIGCONT)
    successor(rig, pid)
    assert [entry["mountpoint"] for entry in rig.status()["mounts"]] == [str(mount)]
    assert mount_id_at(mount) == before
    assert_tree(mount, image / "expected.jsonl")
    assert "mounting it again" not in rig.log()
    rig.run("umount", mount)


def test_only_the_daemon_mounts_over_fuse(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "one-lz4"
    rig.mount(image / "image.boot", image / "blobs")
    from nydus_fscache.errors import UsageError

    request = {"bootstrap": str(image / "image.boot"), "transport": "fuse", "fsid": "x"}
    backend = {"type": "localfs", "localfs": {"dir": str(image / "blobs")}}
    with pytest.raises(UsageError, match="only the daemon"):
        Client(rig.root).call("POST", "/v1/bindings", {**request, "backend": backend})
    rig.run("umount", rig.mountpoint())


def test_overlay_holds_the_image_after_its_umount(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "layers-zstd"
    mount = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    for name in ("upper", "work", "merged"):
        (rig.base / name).mkdir()
    merged = rig.base / "merged"
    options = f"lowerdir={mount},upperdir={rig.base}/upper,workdir={rig.base}/work"
    subprocess.run(["mount", "-t", "overlay", "none", "-o", options, str(merged)], check=True)
    rig.run("umount", mount)
    pid, _ = service(rig)
    os.kill(pid, signal.SIGKILL)
    successor(rig, pid)
    done = subprocess.run(
        ["chroot", str(merged), "/usr/bin/python3.11", "/app/main.py"],
        capture_output=True, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    assert done.stdout.strip()
    assert rig.run("stop", check=False).returncode == 6, "the overlay holds it"
    subprocess.run(["umount", str(merged)], check=True)
    rig.run("stop")
    assert rig.processes() == []
