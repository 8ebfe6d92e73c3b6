"""Answers that are ambiguous, too long, too slow, or not only an answer: over real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from nydus_fscache.config.http_options import Tls
from nydus_fscache.config.url import Url
from nydus_fscache.errors import BackendError
from nydus_fscache.http.pool import Pool
from nydus_fscache.http.wire import Deadline, Request

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Talk = Callable[[socket.socket, int], None]  # (connection, number of the request on it)
Serve = Callable[[Talk], Url]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """``serve(talk)``: the URL of a server that calls it for each request."""
    listeners: list[socket.socket] = []

    def run(listener: socket.socket, talk: Talk) -> None:
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=answer, args=(client, talk), daemon=True).start()

    def answer(client: socket.socket, talk: Talk) -> None:
        number = 0
        with client:
            head = b""
            while True:
                while b"\r\n\r\n" not in head:
                    try:
                        piece = client.recv(4096)
                    except OSError:
                        return
                    if not piece:
                        return
                    head += piece
                head = b""
                try:
                    talk(client, number)
                except OSError:
                    return
                number += 1

    def serve(talk: Talk) -> Url:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=run, args=(listener, talk), daemon=True).start()
        return Url.parse(f"http://127.0.0.1:{listener.getsockname()[1]}/x")

    yield serve
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(Tls(), 5)
    yield pool
    pool.close()


def soon(stall_s: float = 5.0, seconds: float = 10.0) -> Deadline:
    return Deadline(time.monotonic() + seconds, stall_s)


def ask(pool: Pool, url: Url, method: str = "GET", deadline: Deadline | None = None) -> bytes:
    response = pool.exchange(Request(method, url), deadline or soon())
    try:
        return response.read(1000)
    finally:
        response.close()


def chunked(size: bytes, more: bytes = b"0\r\n\r\n") -> bytes:
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + size + b"\r\nok\r\n" + more


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        chunked(b"2"),
        chunked(b"02"),
        chunked(b"2;name=value"),
        chunked(b"2", b"0\r\nX-Sum: 5\r\n\r\n"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    ],
)
def test_well_framed(serve: Serve, pool: Pool, answer: bytes) -> None:
    url = serve(lambda client, _: client.sendall(answer))
    assert [ask(pool, url) for _ in range(3)] == [b"ok"] * 3


@pytest.mark.parametrize(
    "answer",
    [
        chunked(b"0x2"),
        chunked(b"+2"),
        chunked(b"-2"),
        chunked(b"0_2"),
        chunked(b""),
        chunked(b"f" * 20),
        chunked(b"2", b"junk\r\n0\r\n\r\n"),
        chunked(b"1"),  # the chunk is longer than it says
        chunked(b"2", b"0\r\n" + b"X: y\r\n" * 10_000 + b"\r\n"),
        chunked(b"2").replace(b"\r\n", b"\r\nContent-Length: 2\r\n", 1),
        chunked(b"2").replace(b"\r\n", b"\r\nTransfer-Encoding: chunked\r\n", 1),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: a\r\n folded\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: a\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 40_000,
        b"ok",
    ],
)  # fmt: skip
def test_ambiguous_framing_is_refused(serve: Serve, pool: Pool, answer: bytes) -> None:
    def talk(client: socket.socket, _: int) -> None:
        client.sendall(answer)
        client.shutdown(socket.SHUT_WR)

    with pytest.raises(BackendError):
        ask(pool, serve(talk))


@pytest.mark.parametrize(
    ("method", "first"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        ("GET", OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"),
        ("GET", b"HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\nhello"),
        ("GET", b"HTTP/1.1 304 No\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"),
        ("GET", chunked(b"2") + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"),
    ],
    ids=["HEAD with a body", "second answer", "204 with a body", "behind 304", "behind chunks"],
)
def test_leftovers_go_with_their_connection(
    serve: Serve, pool: Pool, method: str, first: bytes
) -> None:
    served: list[int] = []

    def talk(client: socket.socket, number: int) -> None:
        served.append(number)
        client.sendall(first if len(served) == 1 else OK)

    url = serve(talk)
    ask(pool, url, method)
    assert [ask(pool, url) for _ in range(2)] == [b"ok", b"ok"]
    assert served == [0, 0, 1]  # a new connection, which is kept


def test_an_error_that_is_not_read_keeps_its_connection(serve: Serve, pool: Pool) -> None:
    """Its body came with its head: the next request needs no handshake."""
    served: list[int] = []

    def talk(client: socket.socket, number: int) -> None:
        served.append(number)
        client.sendall(b"HTTP/1.1 401 No\r\nContent-Length: 5\r\n\r\nlogin")

    url = serve(talk)
    for _ in range(2):
        response = pool.exchange(Request("GET", url), soon())
        assert response.status == 401
        response.close()
    assert served == [0, 1]  # of one connection


def test_a_trickle_is_not_waited_for(serve: Serve, pool: Pool) -> None:
    def talk(client: socket.socket, _: int) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")
        for _ in range(900):
            client.sendall(b"x")
            time.sleep(0.05)

    began = time.monotonic()
    with pytest.raises(BackendError, match=r"too slow: \d+ bytes in") as caught:
        ask(pool, serve(talk), deadline=soon(stall_s=0.3))
    assert time.monotonic() - began < 2
    assert caught.value.retryable


def test_the_reason_at_the_deadline_is_the_true_one(serve: Serve, pool: Pool) -> None:
    def steady(client: socket.socket, _: int) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n")
        while True:
            client.sendall(b"x" * 2000)
            time.sleep(0.02)

    def silent(client: socket.socket, _: int) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n")
        time.sleep(1)

    response = pool.exchange(Request("GET", serve(steady)), soon(seconds=0.5))
    with pytest.raises(BackendError, match=r"too slow: \d+ bytes in"):
        response.read(1 << 20)
    response.close()
    with pytest.raises(BackendError, match=r"sent nothing for 0\.2 s"):
        ask(pool, serve(silent), deadline=soon(stall_s=0.2))


def test_a_slow_reader_is_not_a_slow_server(serve: Serve, pool: Pool) -> None:
    def talk(client: socket.socket, _: int) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n")
        for _ in range(20):
            client.sendall(b"x")

    response = pool.exchange(Request("GET", serve(talk)), soon(stall_s=0.1))
    buf = memoryview(bytearray(1))
    for _ in range(20):
        assert response.readinto(buf) == 1
        time.sleep(0.02)
    response.close()


@pytest.mark.parametrize(
    "request_",
    [
        Request("GET", Url("http", "127.0.0.1", 1, "/a b")),
        Request("GET", Url("http", "127.0.0.1", 1, "/Ж")),
        Request("GET", Url("http", "127.0.0.1", 1, "/"), {"X": "Ж"}),
        Request("GET", Url("http", "127.0.0.1", 1, "/"), {"X": "a\r\nY: b"}),
    ],
)
def test_requests_that_http_cannot_carry(request_: Request) -> None:
    with pytest.raises(BackendError, match=r"HTTP cannot carry|not ASCII"):
        request_.encode()
