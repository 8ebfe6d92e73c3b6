"""``nydusctl`` against an API that says what it was asked: output, errors, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nydus_fscache.api.nydusd import documents
from nydus_fscache.api.nydusd.server import Listener, Query, Refused
from nydus_fscache.cli.nydusctl import main

BACKEND = {"type": "registry", "registry": {"host": "r.example", "auth": "c2VjcmV0"}}
BLOB = {
    "id": "a" * 64, "requests": 4, "errors": 1, "fetched": 3 << 20, "present": 1 << 20,
    "complete": True,
}  # fmt: skip


class Api:
    """Answers as nydusd would, and remembers the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, Query, Any]] = []

    def __call__(self, method: str, path: str, query: Query, body: bytes | None) -> Any:
        self.calls.append((method, path, query, json.loads(body) if body else None))
        if method != "GET":
            if query.get("mountpoint") == "/bad":
                raise Refused(500, 'Mount(MountFilesystem(Other("no such bootstrap")))')
            return None
        if path == "/api/v1/daemon":
            entry = documents.backend_entry("/app", 0, {"backend": BACKEND})
            return documents.daemon_info("id", None, "RUNNING", {"/app": entry})
        if query.get("id") == "/none":
            raise Refused(404, "Metrics(Stats(NoCounter))")
        if path == "/api/v1/metrics/backend":
            return documents.backend_metrics("registry", [BLOB])
        if path == "/api/v1/metrics/blobcache":
            return documents.blobcache_metrics("/cache", [BLOB])
        return documents.fs_metrics("/app")


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def sock(tmp_path: Path, api: Api) -> Iterator[str]:
    listener = Listener(tmp_path / "api.sock")
    listener.serve(api)
    yield str(tmp_path / "api.sock")
    listener.close()


def test_info(sock: str, api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--sock", sock, "info"]) == 0
    out = capsys.readouterr().out
    for word in ("Version:", "Status:   RUNNING", "Profile:", "Commit:", "/app", "registry"):
        assert word in out
    assert "c2VjcmV0" not in out
    assert main(["-S", sock, "-r", "info"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "RUNNING"


def test_metrics(sock: str, api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    for category, path, words in (
        ("backend", "metrics/backend", ("Read Amount:", "3.0 MiB", "Read Errors:")),
        ("cache", "metrics/blobcache", ("Directory:", "/cache", "a" * 64 + ".blob.data", "yes")),
        ("fsstats", "metrics", ("Data Read:", "Open Files:")),
    ):
        assert main(["-S", sock, "metrics", category]) == 0
        out = capsys.readouterr().out
        assert all(word in out for word in words), out
        assert api.calls[-1] == ("GET", f"/api/v1/{path}", {}, None)
        assert main(["-S", sock, "--raw", "metrics", category, "--id", "/app"]) == 0
        assert json.loads(capsys.readouterr().out)
        assert api.calls[-1][2] == {"id": "/app"}
    assert main(["-S", sock, "metrics", "cache", "--id", "/none"]) == 9
    assert "answers 404: Metrics(Stats(NoCounter))" in capsys.readouterr().err
    assert main(["-S", sock, "metrics", "cache", "-I", "1"]) == 2


def test_interval_prints_a_line_for_each(sock: str) -> None:
    command = [sys.executable, "-m", "nydus_fscache.cli.nydusctl", "-S", sock]
    process = subprocess.Popen(
        [*command, "metrics", "backend", "-I", "0.05"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        header, *lines = [process.stdout.readline() for _ in range(3)]
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()
    assert "BYTES/S" in header
    assert all(line.split()[:3] == ["0.0", "0", "B"] for line in lines)


def test_set_mount_and_umount(
    sock: str, api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "nydusd.json"
    config.write_text('{"device": {}}')
    assert main(["-S", sock, "set", "log-level", "debug"]) == 0
    named = ["-s", "/image.boot", "-c", str(config), "-t", "rafs"]
    assert main(["-S", sock, "mount", *named, "-m", "/app"]) == 0
    assert main(["-S", sock, "umount", "-m", "/app"]) == 0
    body = {"source": "/image.boot", "fs_type": "rafs", "config": '{"device": {}}'}
    assert api.calls == [
        ("PUT", "/api/v1/daemon", {}, {"log_level": "debug"}),
        ("POST", "/api/v1/mount", {"mountpoint": "/app"}, body),
        ("DELETE", "/api/v1/mount", {"mountpoint": "/app"}, None),
    ]
    assert main(["-S", sock, "mount", *named, "-m", "/bad"]) == 9
    assert "no such bootstrap" in capsys.readouterr().err


def test_nobody_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-S", str(tmp_path / "none.sock"), "info"]) == 9
    err = capsys.readouterr().err
    assert "No such file or directory" in err
    assert "hint: does it run" in err


@pytest.mark.parametrize("answer", [b"", b"[1", b"<html>"])
def test_answers_that_are_not_nydusds(
    tmp_path: Path, answer: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    class Odd(Api):
        def __call__(self, *_: Any) -> Any:
            raise Refused(502, answer.decode() or "nothing")

    listener = Listener(tmp_path / "api.sock")
    listener.serve(Odd())
    try:
        assert main(["-S", str(tmp_path / "api.sock"), "info"]) == 9
    finally:
        listener.close()
    assert "answers 502" in capsys.readouterr().err
