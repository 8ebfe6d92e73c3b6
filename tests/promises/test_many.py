"""Many readers and many mounts at once; their memory is printed (pytest -rP)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rig import Rig, regular_files
from trees import assert_tree

from nydus_fscache.api.client import Client

READERS, MOUNTS = 8, 64


def _memory(pid: int) -> dict[str, int]:
    """KiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(value) for name, value, _ in (line.split() for line in lines)}


def _report(rig: Rig, what: str) -> None:
    status = rig.status()
    for name in ("pid", "keeper_pid"):
        memory = _memory(status[name])
        print(f"{what}: {name} RSS {memory['Rss:']} KiB, PSS {memory['Pss:']} KiB")


def test_parallel_readers(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "layers-zstd"
    mount = rig.mount(image / "image.boot", image / "blobs")
    _report(rig, "1 mount, nothing read")
    files = regular_files(mount)

    def read(reader: int) -> int:
        start = len(files) * reader // READERS
        return sum(len(p.read_bytes()) for p in files[start:] + files[:start])

    with ThreadPoolExecutor(READERS) as pool:
        sizes = set(pool.map(read, range(READERS)))
    assert sizes == {sum(p.stat().st_size for p in files)}
    assert_tree(mount, image / "expected.jsonl")
    status = rig.status()
    assert status["requests"]["waiting"] == 0
    assert all(b["errors"] == 0 for b in status["blobs"])
    stored = sum(p.stat().st_size for p in (image / "blobs").iterdir())
    assert rig.fetched() <= stored, "nothing is fetched twice"
    _report(rig, f"{READERS} readers of the whole tree")


def test_many_mounts_of_one_image(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "layers-zstd"
    first = rig.mount(image / "image.boot", image / "blobs", "m0")
    files = regular_files(first)
    small = min((p for p in files if p.stat().st_size), key=lambda p: p.stat().st_size)
    content, client = small.read_bytes(), Client(rig.root)
    fetched = rig.fetched()
    mounts = [first]
    for n in range(1, MOUNTS):
        mounts.append(rig.mountpoint(f"m{n}"))
        request = {
            "bootstrap": str(image / "image.boot"),
            "backend": {"type": "localfs", "localfs": {"dir": str(image / "blobs")}},
            "mountpoint": str(mounts[-1]),
        }
        client.call("POST", "/v1/mounts", request)
    assert len(rig.status()["mounts"]) == MOUNTS
    for mount in mounts:
        assert (mount / small.relative_to(first)).read_bytes() == content
    assert rig.fetched() == fetched
    _report(rig, f"{MOUNTS} mounts")
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(lambda m: [p.read_bytes() for p in regular_files(m)[:200]], mounts[:READERS]))
    assert_tree(mounts[-1], image / "expected.jsonl")
    _report(rig, f"{MOUNTS} mounts, a whole tree read")
    rig.run("umount", mounts[5])
    assert (mounts[6] / small.relative_to(first)).read_bytes() == content
    rig.run("stop")
    assert rig.leftovers() == []


def test_many_mounts_of_a_service_that_was_killed(rig: Rig, golden: Path, tmp_path: Path) -> None:
    """So many that their record is a state and a log of changes: a successor has both, and an
    upgrade is to a version that knows no log."""
    image = golden / "images" / "one-lz4"
    client = Client(rig.root)
    rig.start("serve")
    rig.wait_until_ready()
    mounts = [rig.mountpoint(f"m{n}") for n in range(60)]
    for mount in mounts:
        request = {
            "bootstrap": str(image / "image.boot"),
            "backend": {"type": "localfs", "localfs": {"dir": str(image / "blobs")}},
            "mountpoint": str(mount), "prefetch": "none",
        }  # fmt: skip
        client.call("POST", "/v1/mounts", request)
    for gone in (mounts.pop(3), mounts.pop()):
        client.call("DELETE", f"/v1/mounts?mountpoint={gone}")
    assert (rig.root / "state.log").exists()
    assert len(json.loads((rig.root / "state.json").read_text())["bindings"]) < len(mounts)

    def served() -> list[str]:
        return sorted(m["mountpoint"] for m in rig.status()["mounts"] if m["mounted"])

    pid = rig.status()["pid"]
    os.kill(pid, signal.SIGKILL)
    assert client.wait_for_successor(pid)
    assert served() == sorted(map(str, mounts))
    for mount in (mounts[0], mounts[-1]):
        assert_tree(mount, image / "expected.jsonl")
    client.call("DELETE", f"/v1/mounts?mountpoint={mounts.pop()}")
    assert (rig.root / "state.log").exists()
    (tmp_path / "sitecustomize.py").write_text(
        "import nydus_fscache.handover.state as s; s.LOGGED_VERSION = 99"
    )
    older = tmp_path / "python"
    older.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    older.chmod(0o755)
    rig.run("upgrade", "--python", older)
    assert served() == sorted(map(str, mounts))
    assert_tree(mounts[-1], image / "expected.jsonl")
    rig.run("stop")
    assert rig.leftovers() == []
    assert not (rig.root / "state.log").exists()


def test_a_blob_outlives_the_backend_that_came_last(rig: Rig, golden: Path) -> None:
    """Two images share a blob, each from its own backend; the newer one goes, and its backend."""
    image = golden / "images" / "one-lz4"
    mount = rig.mount(image / "image.boot", image / "blobs", "m", "--prefetch", "none")
    shutil.copytree(image / "blobs", rig.base / "copy")
    newer = rig.mount(image / "image.boot", rig.base / "copy", "newer", "--prefetch", "none")
    assert len(rig.status()["blobs"]) == 1
    rig.run("umount", newer)
    shutil.rmtree(rig.base / "copy")
    assert_tree(mount, image / "expected.jsonl")
