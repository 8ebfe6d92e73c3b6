"""Images over HTTP: from Debian's registry and a plain server; and what HTTP can do to a reader."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from rangeserver import Fault, RangeServer
from rig import Rig, mounts_below, read_errno, regular_files
from servers import Pusher, free_port
from trees import assert_tree, golden_names

BACKEND = 4
# tarfs and a blob that was changed after it was named have no place in a registry's layout
NOT_IN_A_REGISTRY = ("one-prefetch", "tarfs")


def _push(host: str, image: Path) -> str:
    blobs = [file.read_bytes() for file in sorted((image / "blobs").iterdir())]
    with Pusher(host, image.name) as push:
        push.nydus_image("v1", (image / "image.boot").read_bytes(), blobs)
    return f"{host}/{image.name}:v1"


def _proxy(rig: Rig, server: RangeServer, **options: Any) -> Path:
    file = rig.base / "backend.json"
    config = {"addr": server.url, "retry_limit": 1, "timeout": 1, **options}
    file.write_text(json.dumps({"type": "http-proxy", "http-proxy": config}))
    return file


@pytest.mark.parametrize("name", [n for n in golden_names() if n not in NOT_IN_A_REGISTRY])
def test_golden_image_from_a_registry(rig: Rig, golden: Path, registry: str, name: str) -> None:
    image = golden / "images" / name
    temporary = rig.base / "tmp"
    temporary.mkdir()
    rig.environment["TMPDIR"] = str(temporary)
    reference = _push(registry, image)
    mount = rig.mountpoint()
    rig.run("mount", reference, mount, "--plain-http")
    assert list(temporary.iterdir()) == []
    assert_tree(mount, image / "expected.jsonl")
    status = rig.status()
    assert [b["errors"] for b in status["blobs"]] == [0] * len(status["blobs"])
    assert status["mounts"][0]["image"].startswith(f"{registry}/{name}")
    rig.run("stop")
    assert rig.leftovers() == []


@pytest.mark.parametrize("name", NOT_IN_A_REGISTRY)
def test_golden_image_from_a_plain_server(rig: Rig, golden: Path, name: str) -> None:
    image = golden / "images" / name
    with RangeServer(image / "blobs") as server:
        mount = rig.mountpoint()
        rig.run("mount", image / "image.boot", mount, "--backend", _proxy(rig, server))
        assert_tree(mount, image / "expected.jsonl")
        status = rig.status()
        assert all(b["errors"] == 0 for b in status["blobs"])
        verified = "unverified" in rig.run("status").stdout
        assert verified == (name == "tarfs")
        rig.run("stop")
    assert rig.leftovers() == []


def test_a_second_reader_costs_no_request(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "one-lz4"
    with RangeServer(image / "blobs") as server:
        mount = rig.mountpoint()
        rig.run("mount", image / "image.boot", mount, "--backend", _proxy(rig, server))
        path = max(regular_files(mount), key=lambda p: p.stat().st_size)
        first = path.read_bytes()
        asked = rig.requests()
        assert asked > 0
        with path.open("rb") as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert f.read() == first
        again = rig.mountpoint("again")
        rig.run("mount", image / "image.boot", again, "--backend", rig.base / "backend.json")
        assert (again / path.relative_to(mount)).read_bytes() == first
        assert rig.requests() == asked


def _nothing_left(rig: Rig) -> None:
    assert rig.processes() == []
    assert mounts_below(rig.base) == []
    assert not (rig.root / "api.sock").exists()


@pytest.mark.parametrize("status", [401, 404, 500])
@pytest.mark.parametrize("what", ["registry", "blobs"])
def test_refusals_when_mounting(rig: Rig, golden: Path, what: str, status: int) -> None:
    image = golden / "images" / "one-lz4"
    with RangeServer(image / "blobs") as server:
        server.always = Fault(status=status)
        source: list[str | Path] = [f"{server.host}/app:v1", rig.mountpoint(), "--plain-http"]
        if what == "blobs":
            source = [
                image / "image.boot", rig.mountpoint(), "--backend", _proxy(rig, server)
            ]  # fmt: skip
            server.route = lambda *_: (status, {}, b"")
        done = rig.run("mount", *source, check=False)
    assert done.returncode == BACKEND, done.stderr
    assert str(status) in done.stderr
    assert "hint: " in done.stderr
    _nothing_left(rig)


def test_server_down_when_mounting(rig: Rig, golden: Path) -> None:
    port = free_port()
    done = rig.run(
        "mount", f"127.0.0.1:{port}/app:v1", rig.mountpoint(), "--plain-http", check=False
    )
    assert done.returncode == BACKEND, done.stderr
    assert f"127.0.0.1:{port}" in done.stderr
    assert "hint: " in done.stderr
    _nothing_left(rig)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=401),
        Fault(status=404),
        Fault(status=500),
        Fault(wrong_length=1000),
        Fault(wrong_length=-1),
        Fault(reset=True),
        Fault(corrupt=True),
    ],
    ids=["401", "404", "500", "too-long", "too-short", "reset", "corrupt"],
)
def test_trouble_while_reading(rig: Rig, golden: Path, fault: Fault) -> None:
    """EIO for the reader, the blob in the log; once the trouble is over, the file can be read."""
    image = golden / "images" / "one-lz4"
    (blob,) = (image / "blobs").iterdir()
    with RangeServer(image / "blobs") as server:
        mount = rig.mountpoint()
        rig.run("mount", image / "image.boot", mount, "--backend", _proxy(rig, server))
        path = max(regular_files(mount), key=lambda p: p.stat().st_size)
        server.always = fault
        # a flipped byte hits the last chunk of an answer, which may be a neighbour of ours
        paths = regular_files(mount) if fault.corrupt else [path]
        assert errno.EIO in {read_errno(p) for p in paths}
        server.always = Fault()
        (status,) = rig.status()["blobs"]
        assert status["errors"] > 0
        assert status["last_error"]
        assert blob.name in rig.log()
        assert {read_errno(p) for p in paths} == {0}
        rig.run("stop")
    assert rig.leftovers() == []


def test_trouble_that_is_mended_behind_the_reader(rig: Rig, golden: Path) -> None:
    """Right bytes and no error: broken ranges go on where they broke, busy answers are repeated."""
    image = golden / "images" / "one-lz4"
    trouble = [
        Fault(reset=True, after=5000),
        Fault(),
        Fault(status=500),
        Fault(close=True, after=1),
        Fault(status=429, headers={"Retry-After": "0"}),
        Fault(ignore_range=True),
        Fault(stall=True, after=100_000),
        Fault(chunked=True),
        Fault(shift=0),
    ]
    with RangeServer(image / "blobs") as server:
        mount = rig.mountpoint()
        # one request may meet any number of the faults, even all
        backend = _proxy(rig, server, retry_limit=2 * len(trouble) + 1)
        rig.run("mount", image / "image.boot", mount, "--backend", backend)
        server.faults.extend(trouble * 2)
        assert_tree(mount, image / "expected.jsonl")
        assert len(server.faults) <= len(trouble)
        # what reads ahead gives up sooner, and counts as an error of the blob: no reader saw it
        assert rig.status()["requests"]["denied"] == 0


def test_a_host_that_has_no_address(rig: Rig, golden: Path) -> None:
    image = golden / "images" / "one-lz4"
    backend = rig.base / "backend.json"
    table = {"scheme": "http", "host": "registry.invalid", "repo": "test"}
    backend.write_text(json.dumps({"type": "registry", "registry": table}))
    done = rig.run(
        "mount", image / "image.boot", rig.mountpoint(), "--backend", backend, check=False
    )
    assert done.returncode == BACKEND, done.stderr
    assert "cannot resolve registry.invalid" in done.stderr
    _nothing_left(rig)


def test_a_mirror_that_lies_costs_no_reader_anything(rig: Rig, golden: Path) -> None:
    """The digests find it out; the origin is asked for just these bytes, and from then on."""
    image = golden / "images" / "one-lz4"
    with RangeServer(image / "blobs") as origin, RangeServer(image / "blobs") as mirror:
        backend = _proxy(rig, origin, path="/blobs", mirrors=[{"host": mirror.url}])
        mount = rig.mountpoint()
        rig.run("mount", image / "image.boot", mount, "--backend", backend)
        mirror.always = Fault(corrupt=True)
        assert {read_errno(p) for p in regular_files(mount)} == {0}
        assert origin.requests()
        assert "asking the origin" in rig.log()
        assert {blob["errors"] for blob in rig.status()["blobs"]} == {0}
