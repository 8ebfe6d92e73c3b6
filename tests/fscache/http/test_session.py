"""HTTP by requests: deadlines that hold, redirects that take no secrets along, our own errors."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from rangeserver import RangeServer

from nydus_fscache.config.http_options import HttpOptions, ProxyOptions, Tls
from nydus_fscache.config.url import Url
from nydus_fscache.errors import BackendError
from nydus_fscache.http.call import Call
from nydus_fscache.http.session import Session
from nydus_fscache.http.wire import Deadline

Headers = dict[str, str]
Answer = tuple[int, Headers, bytes]


def soon(seconds: float = 10.0, stall_s: float = 5.0) -> Deadline:
    return Deadline(time.monotonic() + seconds, stall_s)


@pytest.fixture
def session() -> Iterator[Session]:
    session = Session(HttpOptions())
    yield session
    session.close()


def test_redirects_leave_secrets_behind(
    tmp_path: Path, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def away(method: str, path: str, headers: Headers, body: bytes) -> Answer:
        if path == "/first":
            return 307, {"Location": "/second"}, b""
        return 307, {"Location": f"{store.url}/data?Signature=1"}, b""

    (tmp_path / "data").write_bytes(b"content")
    with RangeServer(tmp_path) as store, RangeServer(tmp_path, route=away) as server:
        secret = {"Authorization": "Basic c2VjcmV0"}
        call = Call("GET", Url.parse(f"{server.url}/first"), {"X-Any": "1"}, secret)
        with session.send(call, soon()) as answer:
            assert answer.read(100) == b"content"
            assert "Signature" not in f"{answer.peer} {answer.url}"
    assert [seen.headers.get("Authorization") for seen in server.seen] == ["Basic c2VjcmV0"] * 2
    (there,) = store.seen
    assert "Authorization" not in there.headers
    assert "Signature" not in caplog.text
    assert "c2VjcmV0" not in caplog.text
    assert there.headers["X-Any"] == "1"


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("", "without saying where"),
        ("/loop", "more than 5 times"),
        ("file:///etc/passwd", "invalid URL"),
        ("http://u:p@h/", "invalid URL"),
        ("http://[::1/", "invalid URL"),
    ],
)
def test_redirects_that_lead_nowhere(
    tmp_path: Path, session: Session, location: str, message: str
) -> None:
    headers = {"Location": location} if location else {}
    with RangeServer(tmp_path, route=lambda *_: (307, headers, b"")) as server:
        with pytest.raises(BackendError, match=message):
            session.send(Call("GET", Url.parse(f"{server.url}/loop")), soon())
        assert len(server.seen) == (6 if location == "/loop" else 1)


@pytest.fixture(params=[b"", bytes(100_000)], ids=["direct", "requests"])
def body(request: pytest.FixtureRequest) -> bytes:
    """Of a call: a large one goes through ``requests``."""
    return bytes(request.param)


def test_a_trickling_head_ends_at_the_deadline(session: Session, body: bytes) -> None:
    ends_at_the_deadline(session, b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n", body)


def test_a_trickling_body_ends_at_the_deadline(session: Session, body: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n"
    ends_at_the_deadline(session, head, b"x", body)


def ends_at_the_deadline(session: Session, first: bytes, then: bytes, body: bytes) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def trickle() -> None:
        with listener.accept()[0] as client:
            client.recv(4096)
            client.sendall(first)
            while True:
                try:
                    client.sendall(then)
                except OSError:
                    return
                time.sleep(0.05)

    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()
    url = Url.parse(f"http://127.0.0.1:{listener.getsockname()[1]}/")
    began = time.monotonic()

    def read() -> None:
        with session.send(Call("GET", url, body=body), soon(1.0)) as answer:
            answer.read(1 << 20)

    late = "not done in 1 s|too slow.* in 1 s|not in time"
    with listener, pytest.raises(BackendError, match=late) as caught:
        read()
    assert time.monotonic() - began < 3
    assert caught.value.retryable
    thread.join(5)
    assert not thread.is_alive()


def test_silence_is_bounded(session: Session, body: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = Url.parse(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        began = time.monotonic()
        with pytest.raises(BackendError, match=r"no answer in time|sent nothing for 0\.3 s"):
            session.send(Call("GET", url, body=body), soon(stall_s=0.3))
    assert time.monotonic() - began < 3


def test_errors_say_what_failed_and_show_no_query(session: Session, body: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = Url.parse(f"http://127.0.0.1:{port}/a?Signature=1")
    with pytest.raises(BackendError, match=f"http://127.0.0.1:{port}: Connection refused") as e:
        session.send(Call("GET", url, body=body), soon())
    assert "Signature" not in f"{e.value}{e.value.hint}{e.value.__cause__}"
    nowhere = Url.parse("http://name.invalid/")
    with pytest.raises(BackendError, match=r"cannot resolve name\.invalid"):
        session.send(Call("GET", nowhere, body=body), soon())


def test_what_the_configuration_trusts(tmp_path: Path, body: bytes) -> None:
    authority = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server_context)
    pem = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(pem))
    (tmp_path / "x").write_bytes(b"x")
    with RangeServer(tmp_path, tls=server_context) as server:
        call = Call("GET", Url.parse(f"https://localhost:{server.port}/x"), body=body)
        for tls in (Tls(ca_cert_files=(str(pem),)), Tls(skip_verify=True)):
            session = Session(HttpOptions(tls=tls))
            with session.send(call, soon()) as answer:
                assert answer.read(10) == b"x"
            session.close()
        session = Session(HttpOptions())
        with pytest.raises(BackendError, match="certificate refused") as caught:
            session.send(call, soon())
        assert "ca_cert_files" in (caught.value.hint or "")
        session.close()


def test_plain_server_asked_over_https(tmp_path: Path, session: Session, body: bytes) -> None:
    with RangeServer(tmp_path) as server:
        call = Call("GET", Url.parse(f"https://127.0.0.1:{server.port}/x"), body=body)
        with pytest.raises(BackendError, match="TLS handshake failed"):
            session.send(call, soon())


def test_proxy_and_fall_back(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    nobody = Url.parse("http://127.0.0.1:1/")
    with RangeServer(tmp_path) as proxy, RangeServer(tmp_path) as server:
        far = Call("GET", Url.parse("http://name.invalid/x"))
        through = HttpOptions(proxy=ProxyOptions(Url.parse(proxy.url), "me:p@ss:w", fallback=False))
        session = Session(through)
        with session.send(far, soon()) as answer:
            assert answer.read(10) == b"x"
        session.close()
        assert proxy.seen[0].path == "http://name.invalid/x"
        assert proxy.seen[0].headers["Proxy-Authorization"] == "Basic bWU6cEBzczp3"

        near = Call("GET", Url.parse(f"{server.url}/x"))
        for fallback in (True, False):
            session = Session(HttpOptions(proxy=ProxyOptions(nobody, fallback=fallback)))
            if fallback:
                with session.send(near, soon()) as answer:
                    assert answer.read(10) == b"x"
            else:
                with pytest.raises(BackendError, match="refused"):
                    session.send(near, soon())
            session.close()
