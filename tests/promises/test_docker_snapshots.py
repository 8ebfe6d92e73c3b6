"""Docker 29: a container whose parent is a snapshot of dockerd's own, above the image.

The snapshots are made as dockerd makes them, by ``ctr``: the image's top, ``-init`` above it,
committed, and the container's above that (docs/nydusd.md, "Docker").
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import cold_image
import pytest
from containerd import Stack, running

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: no containers")
START_S = 60.0


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cold_image.create(tmp_path_factory.mktemp("cold"))


def snapshots(rig: Stack, *words: str) -> str:
    return rig.ctr("snapshots", "--snapshotter", "nydus", *words).stdout


def top_of(rig: Stack) -> str:
    """The committed snapshot that is nobody's parent."""
    rows = [line.split() for line in snapshots(rig, "ls").splitlines()[1:]]
    parents = {row[1] for row in rows if len(row) == 3}
    return next(row[0] for row in rows if row[-1] == "Committed" and row[0] not in parents)


def below_init(rig: Stack, top: str, name: str) -> None:
    """Snapshot ``name`` of a container, with its ``-init`` between it and the image."""
    snapshots(rig, "prepare", f"{name}-init-key", top)
    snapshots(rig, "commit", f"{name}-init", f"{name}-init-key")
    snapshots(rig, "prepare", name, f"{name}-init")


@contextlib.contextmanager
def rootfs(rig: Stack, name: str) -> Iterator[Path]:
    """A container's root file system, as the snapshotter says it is mounted."""
    point = rig.base / f"root-{name}"
    point.mkdir()
    words = shlex.split(snapshots(rig, "mounts", str(point), name))
    subprocess.run(words, check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)
        point.rmdir()


def views(rig: Stack) -> list[str]:
    return [point for point in rig.mounts() if point.endswith("/fs")]


def run_in(rig: Stack, root: Path, name: str, script: str) -> str:
    argv = ("run", "--rm", "--rootfs", str(root), name, "/bin/sh", "-c", script)
    return rig.ctr(*argv).stdout


@pytest.mark.parametrize("mode", ["shared", "dedicated"])
def test_a_container_below_an_init_snapshot(cold: Path, mode: str) -> None:
    with running(daemon_mode=mode) as rig:
        reference = rig.push(cold)
        rig.pull(reference)
        top = top_of(rig)
        below_init(rig, top, "c1")
        assert len(views(rig)) == 1, rig.logs()
        layer = Path(views(rig)[0])
        assert (layer / "image" / "image.boot").stat().st_size, "the snapshotter reads it again"
        with rootfs(rig, "c1") as root:
            assert not (root / "image" / "image.boot").exists()
            said = run_in(rig, root, "one", "cat /etc/marked; echo new > /etc/new; cat /etc/new")
            assert said == "marked\nnew\n"
        if mode == "shared":
            _again_after_a_death(rig, top, layer)
        for name in ("c2", "c2-init", "c1", "c1-init"):
            with contextlib.suppress(AssertionError):  # there is no c2 in dedicated mode
                snapshots(rig, "rm", name)
        rig.ctr("images", "rm", "--sync", reference)
        end = time.monotonic() + START_S
        left = rig.snapshotter_root / "snapshots"
        while rig.mounts() or list(left.iterdir()):
            assert time.monotonic() < end, f"{rig.mounts()} {list(left.iterdir())}\n{rig.logs()}"
            time.sleep(0.1)


def _again_after_a_death(rig: Stack, top: str, layer: Path) -> None:
    """The snapshotter looks for the bootstrap before it mounts again, and finds it."""
    front = next(
        pid for pid in rig.daemon_pids()
        if b"--mountpoint" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )  # fmt: skip
    os.kill(front, signal.SIGKILL)
    end = time.monotonic() + START_S
    while "is mounted already: adopted" not in rig.logs(1 << 20):
        assert time.monotonic() < end, rig.logs()
        time.sleep(0.1)
    assert views(rig) == [str(layer)]
    below_init(rig, top, "c2")
    with rootfs(rig, "c2") as root:
        assert run_in(rig, root, "two", "cat /etc/marked") == "marked\n"
