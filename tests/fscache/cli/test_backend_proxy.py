"""``nydus-backend-proxy``: our own registry backend reads through it; nothing else is to be had."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from nydus_fscache.backend.make import make_backend
from nydus_fscache.cli.backend_proxy import BlobServer, main

DATA = random.Random(4).randbytes(300_000)
NAME = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BlobServer]:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / NAME).write_bytes(DATA)
    (blobs / ("e" * 64)).write_bytes(b"")
    os.mkfifo(blobs / ("f" * 64))
    (tmp_path / "secret").write_text("secret")
    with BlobServer(blobs) as server:
        server.run_in_background()
        yield server
        server.shutdown()


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


def url(server: BlobServer, path: str) -> str:
    return f"http://127.0.0.1:{server.port}{path}"


def test_the_registry_backend_reads_through_it(server: BlobServer) -> None:
    options = {"scheme": "http", "host": f"127.0.0.1:{server.port}", "repo": "any/name"}
    backend = make_backend({"type": "registry", "registry": options})
    deadline = time.monotonic() + 10
    assert backend.size(NAME, deadline=deadline) == len(DATA)
    assert backend.read(NAME, 1000, 250_000, deadline=deadline) == DATA[1000:251_000]
    backend.close()


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [
        (None, 200, slice(None)),
        ("bytes=0-0", 206, slice(0, 1)),
        ("bytes=10-19", 206, slice(10, 20)),
        ("bytes=299990-", 206, slice(299_990, None)),
        ("bytes=-10", 206, slice(-10, None)),
        ("bytes=10-999999999", 206, slice(10, None)),
        ("bytes=300000-", 416, slice(0, 0)),
        ("bytes=5-4", 416, slice(0, 0)),
        ("bytes=-0", 416, slice(0, 0)),
        ("bytes=0-1,5-6", 416, slice(0, 0)),
        ("lines=1-2", 416, slice(0, 0)),
    ],
)
def test_ranges(
    server: BlobServer, session: requests.Session, wanted: str | None, status: int, part: slice
) -> None:
    headers = {"Range": wanted} if wanted else {}
    path = url(server, f"/v2/a/b/blobs/sha256:{NAME}")
    for method in ("GET", "HEAD"):
        answer = session.request(method, path, headers=headers)
        assert answer.status_code == status
        assert answer.content == (DATA[part] if method == "GET" else b"")
        assert int(answer.headers["Content-Length"]) == len(DATA[part])
        assert answer.headers["Docker-Content-Digest"] == f"sha256:{NAME}"


@pytest.mark.parametrize(
    "path",
    [
        f"/v2/a/blobs/sha256:{'0' * 64}", f"/v2/a/blobs/sha256:{'f' * 64}", f"/{NAME}",
        "/v2/a/blobs/sha256:../../secret", "/v2/a/blobs/sha256:..%2fsecret", "/", "/v2/_catalog",
        f"/v2/a/manifests/sha256:{NAME}", f"/v2//blobs/sha256:{NAME}", "/v2/a/blobs/sha256:",
    ],
)  # fmt: skip
def test_nothing_else_is_served(server: BlobServer, session: requests.Session, path: str) -> None:
    answer = session.get(url(server, path))
    assert (answer.status_code, answer.content) == (404, b"")
    assert session.post(url(server, path)).status_code == 501


def test_version_check_and_empty_blob(server: BlobServer, session: requests.Session) -> None:
    assert session.get(url(server, "/v2/")).status_code == 200
    answer = session.get(url(server, f"/v2/a/blobs/sha256:{'e' * 64}"))
    assert (answer.status_code, answer.content) == (200, b"")


def test_the_program(tmp_path: Path, session: requests.Session) -> None:
    (tmp_path / NAME).write_bytes(DATA)
    command = [sys.executable, "-m", "nydus_fscache.cli.backend_proxy", "-b", str(tmp_path)]
    environ = {**os.environ, "ROCKET_PORT": "0"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    assert process.stdout is not None
    try:
        match = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert match
        assert session.get(f"{match[0]}/v2/a/blobs/sha256:{NAME}").content == DATA
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


def test_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-b", str(tmp_path / "none")]) == 2
    assert main(["-b", str(tmp_path), "--port", "x"]) == 2
    assert "hint:" in capsys.readouterr().err
