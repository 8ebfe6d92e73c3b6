"""What cannot be had is an error soon, and neither a flood of requests nor of log lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from rangeserver import Fault, RangeServer
from rig import Rig, read_errno, regular_files

WATCHED_S = 3
READS = """
import sys, time
count, end = 0, time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    count += 1
    try:
        open(sys.argv[1], "rb").read(4096)
        sys.exit("it could be read")
    except OSError:
        pass
print(count)
"""


def _mount(rig: Rig, server: RangeServer, boot: Path) -> Path:
    backend = rig.base / "backend.json"
    table = {"addr": server.url, "path": "/blobs", "retry_limit": 0}
    backend.write_text(json.dumps({"type": "http-proxy", "http-proxy": table}))
    mount = rig.mountpoint()
    rig.run("mount", boot, mount, "--backend", backend, "--prefetch", "none")
    return mount


def _flood(rig: Rig, golden: Path, fault: Fault) -> None:
    image = golden / "images" / "one-lz4"
    with RangeServer(image / "blobs") as server:
        mount = _mount(rig, server, image / "image.boot")
        path = max(regular_files(mount), key=lambda p: p.stat().st_size)
        server.always = fault
        before, asked = len(rig.log()), len(server.requests())
        command = [sys.executable, "-c", READS, path, str(WATCHED_S)]
        readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        counts = [int(reader.communicate(timeout=60)[0]) for reader in readers]
        assert [reader.returncode for reader in readers] == [0, 0, 0]
        assert sum(counts) > 100, "readers get their error at once"
        assert len(server.requests()) - asked < 60
        assert len(rig.log()) - before < 20_000
        server.always = Fault()
        until = os.times().elapsed + 15
        while read_errno(path) and os.times().elapsed < until:
            pass
        assert read_errno(path) == 0, "once the trouble is over, it is read"
        rig.run("stop")


def test_a_bad_chunk_that_is_read_in_a_loop(rig: Rig, golden: Path) -> None:
    _flood(rig, golden, Fault(rotten=True))


def test_a_blob_that_is_refused_and_read_in_a_loop(rig: Rig, golden: Path) -> None:
    _flood(rig, golden, Fault(status=403))


def test_the_reason_is_told_where_a_prefetch_fails(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "one-lz4"
    with RangeServer(image / "blobs") as server:
        mount = _mount(rig, server, image / "image.boot")
        server.always = Fault(status=404)
        done = rig.run("prefetch", mount, check=False)
        assert done.returncode == 4
        assert "404" in done.stderr
        assert "404" in rig.run("status").stdout
        rig.run("stop")
