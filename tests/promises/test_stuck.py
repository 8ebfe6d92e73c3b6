"""One image whose backend has stopped answering holds up nobody else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from rangeserver import Fault, RangeServer
from rig import Rig
from trees import assert_tree

READERS = 60


def end(readers: list[subprocess.Popen[bytes]]) -> None:
    for reader in readers:
        reader.kill()
    for reader in readers:
        reader.wait(30)


def test_a_stuck_backend_does_not_hold_up_other_images(rig: Rig, golden: Path) -> None:
    stuck, well = golden / "images" / "one-prefetch", golden / "images" / "one-lz4"
    readers: list[subprocess.Popen[bytes]] = []
    nowhere = subprocess.DEVNULL
    with RangeServer(stuck / "blobs") as server:
        backend = rig.base / "backend.json"
        table = {"addr": server.url, "path": "/blobs", "timeout": 60}
        backend.write_text(json.dumps({"type": "http-proxy", "http-proxy": table}))
        slow = rig.mountpoint("slow")
        rig.run("mount", stuck / "image.boot", slow, "--backend", backend)
        try:
            server.always = Fault(stall=True)
            files = [p for p in sorted(slow.rglob("*")) if p.is_file() and not p.is_symlink()]
            step = max(1, len(files) // READERS)
            readers += [
                subprocess.Popen(["cat", path], stdout=nowhere, stderr=nowhere)
                for path in files[::step][:READERS]
            ]
            mount = rig.mount(well / "image.boot", well / "blobs", "well")
            subprocess.run(
                ["cp", "-a", mount, rig.base / "copy"], check=True, timeout=15, capture_output=True
            )
            status = rig.status()
            assert status["requests"]["waiting"] > 0, "the stuck image still has readers"
            assert status["requests"]["oldest_s"] > 0
            assert any(reader.poll() is None for reader in readers)
            pid = status["pid"]
            os.kill(pid, signal.SIGKILL)
            assert_tree(mount, well / "expected.jsonl")
            assert rig.status()["pid"] != pid, "nor does it hold up the start"
            rig.mount(well / "image.boot", well / "blobs", "another")
            end(readers)
            leaving = rig.start("umount", slow)
            while any(m["mountpoint"] == str(slow) for m in rig.status()["mounts"]):
                pass
            assert leaving.poll() is None, "what is on its way is still waited for"
            rig.run("umount", rig.base / "another")
        finally:
            end(readers)
    assert leaving.wait(60) == 0
