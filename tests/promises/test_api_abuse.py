"""Clients of the API that are broken or mean: the daemon stays, and answers the others."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rig import Rig

from nydus_fscache.api import server as api

STATUS = b"GET /v1/status HTTP/1.1\r\n\r\n"
DIGITS = b"9" * 5000  # more than int() takes


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One for all: each test leaves it well."""
    rig = Rig(tmp_path_factory.mktemp("abuse"))
    rig.root.mkdir(mode=0o700)
    serve = rig.start("serve")
    try:
        rig.wait_until_ready()
        yield rig
        assert "Traceback" not in rig.log()
    finally:
        rig.run("stop", check=False)
        serve.wait(60)
        rig.clean()


def connect(rig: Rig) -> socket.socket:
    raw = socket.socket(socket.AF_UNIX)
    raw.settimeout(20)
    try:
        raw.connect(str(rig.root / "api.sock"))
    except OSError:
        raw.close()
        raise
    return raw


def talk(rig: Rig, request: bytes) -> tuple[int, Any]:
    """(status, document) of a request that ends with the stream."""
    with connect(rig) as raw:
        with contextlib.suppress(OSError):  # it may be refused before it was sent whole
            raw.sendall(request)
            raw.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while data := raw.recv(65536):
                answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), json.loads(body)


def post(body: bytes, path: str = "/v1/mounts") -> bytes:
    return b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(body), body)


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"POST /v1/gc HTTP/1.1\r\nContent-Length: %s\r\n\r\n" % DIGITS, id="length"),
        pytest.param(post(b'{"to": %s}' % DIGITS, "/v1/gc"), id="number"),
        pytest.param(
            post(
                b'{"bootstrap": "/dev/null", "mountpoint": "/", "backend": {"type": "localfs", '
                b'"localfs": {"dir": "/", "timeout": %s}}}' % DIGITS
            ),
            id="option",
        ),
        pytest.param(b"GET /v1/status HTTP/1.1\r\nX: %s\r\n\r\n" % (b"x" * 70_000), id="header"),
        pytest.param(b"GET /v1/status HTTP/1.1\r\n%s\r\n" % (b"X: y\r\n" * 500), id="headers"),
        pytest.param(b"GET /%s HTTP/1.1\r\n\r\n" % (b"x" * 70_000), id="path"),
        pytest.param(b"GET /v1/status HTTP/%s\r\n\r\n" % DIGITS, id="version"),
        pytest.param(
            b"POST /v1/gc HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", id="chunks"
        ),
        pytest.param(b"POST /v1/gc HTTP/1.1\r\nContent-Length: 9\r\n\r\n{}", id="half"),
        pytest.param(post(b'{"to": 1e999}', "/v1/gc"), id="infinity"),
        pytest.param(post(b'{"to": NaN}', "/v1/gc"), id="no number"),
        pytest.param(post(b'{"bootstrap": "\\u0000", "backend": {}}', "/v1/bindings"), id="zero"),
        pytest.param(
            post(b'{"bootstrap": "\\ud800", "backend": {}}', "/v1/bindings"), id="half pair"
        ),
        pytest.param(post(b'{"mountpoint": "/\\u0000"}'), id="zero in a path"),
        pytest.param(post(b'{"mountpoint": "/%s"}' % (b"a" * 9000)), id="long path"),
        pytest.param(b"GET /v1/traces?digest=%00 HTTP/1.1\r\n\r\n", id="zero in a query"),
        pytest.param(b"GET //[ HTTP/1.1\r\n\r\n", id="target"),
        pytest.param(b"BREW /v1/status HTTP/1.1\r\n\r\n", id="method"),
    ],
)
def test_a_bad_request_is_named(daemon: Rig, request_bytes: bytes) -> None:
    status, document = talk(daemon, request_bytes)
    assert 400 <= status <= 505, document
    assert status != 500 or document["error"]["exit_code"] > 1, document
    assert document["error"]["kind"] != "Internal", document
    assert document["error"]["message"]
    assert talk(daemon, STATUS)[0] == 200


def test_more_connections_than_it_takes(daemon: Rig) -> None:
    """Who is too many is told so; the others are served when they go on."""
    with contextlib.ExitStack() as stack:
        held = []
        for _ in range(api.MAX_CONNECTIONS):
            held.append(stack.enter_context(connect(daemon)))
            held[-1].sendall(STATUS[:10])
        status, document = talk(daemon, STATUS)
        assert status == 503
        assert "too many" in document["error"]["message"]
        held[0].sendall(STATUS[10:])
        assert held[0].recv(20).startswith(b"HTTP/1.1 200")
    daemon.wait_until_ready()


def test_many_at_once(daemon: Rig) -> None:
    statuses: list[int] = []

    def calls() -> None:
        statuses.extend(talk(daemon, STATUS)[0] for _ in range(60))

    threads = [threading.Thread(target=calls) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * 960


def test_a_request_that_comes_byte_by_byte_is_ended(tmp_path: Path) -> None:
    """The deadline is of the whole request: each byte is in time."""
    rig = Rig(tmp_path, {"NYDUS_FSCACHE_CALL_TIMEOUT_S": "1"})
    serve = rig.start("serve")
    try:
        rig.wait_until_ready()
        with connect(rig) as raw:
            raw.settimeout(0.1)
            for i in range(200):
                with contextlib.suppress(OSError):
                    raw.sendall(b"GET /" if not i else b"a")
                with contextlib.suppress(TimeoutError):
                    answer = raw.recv(1000)
                    break
            else:
                raise AssertionError("it goes on")
        assert answer.startswith(b"HTTP/1.1 4") or not answer
        assert talk(rig, STATUS)[0] == 200
    finally:
        rig.run("stop", check=False)
        serve.wait(60)
        rig.clean()
