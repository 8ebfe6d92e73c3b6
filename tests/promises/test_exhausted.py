"""Out of memory, out of descriptors: readers wait or get an error, never a wrong byte; it heals."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rig import Rig, regular_files
from trees import assert_tree

PATIENCE_S = 60
LIMIT = 2 << 20  # of what a service may take more than it has


class MemoryGroup:
    """A memory cgroup, of the version that this machine has."""

    def __init__(self, name: str) -> None:
        v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
        self.is_v1 = (v1 / "tasks").exists()
        parent = v1 if self.is_v1 else v2
        if not self.is_v1 and not (v2 / "cgroup.controllers").exists():
            pytest.skip("NO MEMORY CGROUP here: being out of memory is not tested")
        self.path = parent / name
        try:
            if not self.is_v1:
                (v2 / "cgroup.subtree_control").write_text("+memory")
            self.path.mkdir()
        except OSError as e:
            pytest.skip(f"NO MEMORY CGROUP can be made: being out of memory is not tested: {e}")

    def limit(self, limit: int) -> None:
        name = "memory.limit_in_bytes" if self.is_v1 else "memory.max"
        (self.path / name).write_text(str(limit))
        if not self.is_v1:
            (self.path / "memory.swap.max").write_text("0")

    def add(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    def kills(self) -> int:
        text = (self.path / ("memory.oom_control" if self.is_v1 else "memory.events")).read_text()
        return int(dict(line.split() for line in text.splitlines())["oom_kill"])


@pytest.fixture
def memory_group() -> Iterator[MemoryGroup]:
    group = MemoryGroup(f"nydus-fscache-test-{os.getpid()}")
    try:
        yield group
    finally:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                group.path.rmdir()
                break
            time.sleep(0.05)


def test_out_of_memory_is_a_pause(rig: Rig, golden: Path, memory_group: MemoryGroup) -> None:
    image = golden / "images" / "layers-zstd"
    mount = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    pid = rig.status()["pid"]
    memory_group.limit(LIMIT)
    memory_group.add(pid)
    assert_tree(mount, image / "expected.jsonl")
    document = rig.status()
    assert memory_group.kills() >= 1, "it was not killed: the test shows nothing"
    assert document["pid"] != pid
    assert document["requests"]["denied"] == 0
    assert document["requests"]["waiting"] == 0


def open_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_out_of_descriptors_is_an_error_and_heals(rig: Rig, golden: Path) -> None:
    image, other = golden / "images" / "one-lz4", golden / "images" / "one-batch"
    mount = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    second = rig.mountpoint("second")
    entries = map(json.loads, (image / "expected.jsonl").read_text().splitlines())
    digests = {e["path"]: e["sha256"] for e in entries if e["type"] == "reg"}
    pid = rig.status()["pid"]
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = open_descriptors(pid)
    try:
        # two are needed for a call of the API, none are left for blobs, mounts and connections
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 2, limits[1]))
        done = rig.run(
            "mount", other / "image.boot", second, "--blob-dir", other / "blobs", check=False
        )
        assert done.returncode not in (0, 1), done.stderr
        assert "Too many open files" in done.stderr
        assert "hint: " in done.stderr
        assert rig.status()["pid"] == pid
        files = regular_files(mount)
        readers = [
            subprocess.Popen(["sha256sum", *files[n::4]], stdout=-1, stderr=-1, text=True)
            for n in range(4)
        ]
        read = 0
        for reader in readers:
            out, err = reader.communicate(timeout=PATIENCE_S)
            for line in out.splitlines():
                digest, _, path = line.partition("  ")
                assert digest == digests[f"/{Path(path).relative_to(mount)}"], path
                read += 1
            for line in err.splitlines():
                assert line.endswith((os.strerror(errno.EPERM), os.strerror(errno.EIO))), line
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert rig.status()["pid"] == pid
    assert_tree(mount, image / "expected.jsonl")
    rig.mount(other / "image.boot", other / "blobs", "second")
    assert_tree(second, other / "expected.jsonl")
    assert "Traceback" not in (rig.root / "daemon.log").read_text()
    print(f"{read} of {len(files)} files could be read without descriptors")
