"""A range is exactly its bytes or an error, whatever the server does."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from backend_kit import Make, soon
from rangeserver import Fault, RangeServer

from nydus_fscache.backend.make import make_backend
from nydus_fscache.errors import BackendError, UsageError

OFF, LENGTH = 12_345, 700_000


def make_for(make: Make, server: RangeServer, **more: object):
    return make("registry", scheme="http", host=server.host, repo="a/b", timeout=0.5, **more)


def test_size_and_ranges(blobs: Path, make: Make, data: bytes, blob_id: str) -> None:
    with RangeServer(blobs) as server:
        backend = make_for(make, server)
        assert backend.size(blob_id, deadline=soon()) == len(data)
        for off, length in [(0, 1), (OFF, LENGTH), (len(data) - 1, 1), (0, len(data)), (5, 0)]:
            assert backend.read(blob_id, off, length, deadline=soon()) == data[off : off + length]


def test_one_connection_serves_many_requests(
    blobs: Path, make: Make, blob_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted = []
    accept = RangeServer.get_request

    def counted(self: RangeServer) -> object:
        accepted.append(1)
        return accept(self)

    monkeypatch.setattr(RangeServer, "get_request", counted)
    with RangeServer(blobs) as server:
        backend = make_for(make, server)
        for i in range(20):
            backend.read(blob_id, i, 1000, deadline=soon())
    assert len(accepted) == 1


@pytest.mark.parametrize(
    "fault",
    [
        Fault(reset=True, after=50_000),
        Fault(close=True, after=100_000),
        Fault(close=True),
        Fault(stall=True, after=10_000),
        Fault(status=500),
        Fault(status=503, headers={"Retry-After": "0"}),
        Fault(status=429),
        Fault(ignore_range=True),
        Fault(chunked=True),
        Fault(ignore_range=True, chunked=True),
    ],
    ids=str,
)
def test_recovers(blobs: Path, make: Make, data: bytes, blob_id: str, fault: Fault) -> None:
    with RangeServer(blobs) as server:
        server.faults.append(fault)
        backend = make_for(make, server)
        got = backend.read(blob_id, OFF, LENGTH, deadline=soon())
        assert got == data[OFF : OFF + LENGTH]


def test_what_arrived_is_not_asked_for_again(
    blobs: Path, make: Make, data: bytes, blob_id: str
) -> None:
    with RangeServer(blobs) as server:
        server.faults += [Fault(close=True, after=64 << 10), Fault(close=True, after=64 << 10)]
        backend = make_for(make, server)
        assert backend.read(blob_id, 0, 1 << 19, deadline=soon()) == data[: 1 << 19]
        starts = [seen.headers["Range"].split("-")[0] for seen in server.requests()]
    assert starts == ["bytes=0", "bytes=65536", "bytes=131072"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(status=404), "answers 404"),
        (Fault(status=403), "answers 403"),
        (Fault(status=204), "answers 204"),
        (Fault(wrong_length=7), "bytes as bytes"),
        (Fault(wrong_length=-7), "bytes as bytes"),
        (Fault(shift=512), r"bytes 12857-\d+ for 12345-"),
        (Fault(shift=-512), r"bytes 11833-\d+ for 12345-"),
    ],
    ids=str,
)
def test_refuses_at_once(blobs: Path, make: Make, blob_id: str, fault: Fault, message: str) -> None:
    with RangeServer(blobs) as server:
        server.faults.append(fault)
        backend = make_for(make, server)
        with pytest.raises(BackendError, match=message) as caught:
            backend.read(blob_id, OFF, LENGTH, deadline=soon())
        assert caught.value.hint
        assert len(server.requests()) == 1


def test_blob_that_is_too_short(blobs: Path, make: Make, data: bytes, blob_id: str) -> None:
    with RangeServer(blobs) as server:
        backend = make_for(make, server)
        for off in (len(data) - 10, len(data) + 10):
            with pytest.raises(BackendError, match=r"are needed|answers 416"):
                backend.read(blob_id, off, 20, deadline=soon())
        server.always = Fault(ignore_range=True)
        with pytest.raises(BackendError, match="are needed"):
            backend.read(blob_id, len(data) - 10, 20, deadline=soon())


def test_server_that_stalls_for_ever_costs_the_deadline_only(
    blobs: Path, make: Make, blob_id: str
) -> None:
    with RangeServer(blobs) as server:
        server.always = Fault(stall=True)
        backend = make_for(make, server)
        started = time.monotonic()
        with pytest.raises(BackendError):
            backend.read(blob_id, 0, 1000, deadline=soon(0.8))
        assert time.monotonic() - started < 1.5


def test_server_that_always_fails_is_given_up(blobs: Path, make: Make, blob_id: str) -> None:
    with RangeServer(blobs) as server:
        server.always = Fault(status=500)
        backend = make_for(make, server, retry_limit=2)
        with pytest.raises(BackendError, match="answers 500") as caught:
            backend.read(blob_id, 0, 1000, deadline=soon())
        assert caught.value.retryable
        assert len(server.requests()) == 3
        with (
            pytest.raises(BackendError),
            backend.stream(blob_id, 0, 10, deadline=soon(), prefetch=True),
        ):
            pass
        assert len(server.requests()) == 5  # prefetch gives up sooner


def test_nothing_listens(make: Make, blob_id: str) -> None:
    backend = make("registry", scheme="http", host="127.0.0.1:1", repo="a/b", retry_limit=1)
    with pytest.raises(BackendError, match="Connection refused") as caught:
        backend.size(blob_id, deadline=soon())
    assert caught.value.hint


def test_host_that_has_no_address(make: Make, blob_id: str) -> None:
    backend = make("registry", scheme="http", host="no-such-host.invalid", repo="a", retry_limit=1)
    with pytest.raises(BackendError, match=r"cannot resolve no-such-host\.invalid"):
        backend.size(blob_id, deadline=soon(5))


def test_slow_reader(blobs: Path, make: Make, data: bytes, blob_id: str) -> None:
    with RangeServer(blobs) as server:
        backend = make_for(make, server)
        got = bytearray()
        buf = memoryview(bytearray(100_000))
        with backend.stream(blob_id, 0, len(data), deadline=soon()) as stream:
            time.sleep(0.7)  # longer than the time-out, which is about the server's silence
            while count := stream.readinto(buf):
                got += buf[:count]
        assert got == data


def test_many_threads(blobs: Path, make: Make, data: bytes, blob_id: str) -> None:
    wrong: list[object] = []
    with RangeServer(blobs) as server:
        backend = make_for(make, server)

        def read(seed: int) -> None:
            for i in range(8):
                off = seed * 20_011 + i * 1009
                if backend.read(blob_id, off, 30_000, deadline=soon()) != data[off : off + 30_000]:
                    wrong.append((seed, i))

        threads = [threading.Thread(target=read, args=(n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_blob_ids_that_are_no_names(blobs: Path, make: Make) -> None:
    with RangeServer(blobs) as server:
        backend = make_for(make, server)
        for bad in ("", "..", "a/b", "a?b", "a b", "a\r\nHost: x", "a#b", "a%2fb"):
            with pytest.raises(BackendError, match="cannot be part of a URL"):
                backend.read(bad, 0, 1, deadline=soon())
        assert not server.seen


@pytest.mark.parametrize(
    "options",
    [
        {"repo": "a"},
        {"host": "h"},
        {"host": "h", "repo": "a:tag"},
        {"host": "h/x", "repo": "a"},
        {"host": "h", "repo": "a", "auth": "???"},
        {"host": "h", "repo": "a", "auth": "bm9jb2xvbg=="},
        {"host": "h", "repo": "a", "scheme": "ftp"},
        {"host": "h", "repo": "a", "timeout": "5"},
        {"host": "h", "repo": "a", "hots": "x"},
        {"host": "h", "repo": "a", "ca_cert_files": ["/does/not/exist"]},
        {"host": "h", "repo": "a", "mirrors": [{"host": "no-url"}]},
    ],
    ids=str,
)
def test_bad_options(make: Make, options: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        make("registry", **options)
    assert caught.value.hint


@pytest.mark.parametrize(
    "config",
    [
        {}, {"type": None}, {"type": 3}, {"type": ["localfs"]}, {"type": {"a": 1}},
        {"type": "localfs"}, {"type": "localfs", "localfs": ["x"]},
        {"type": "localfs", "localfs": {"dir": ["x"]}}, {"type": "http-proxy", "http-proxy": "x"},
    ],
)  # fmt: skip
def test_wrong_types_are_usage_errors(config: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        make_backend(config)


@pytest.mark.parametrize("path", ["/Ж€/", "/a b/", "/a\r\nX: y/", "/%41/", "/#/", "/\0"])
def test_odd_characters_of_a_path_are_sent_escaped(
    blobs: Path, make: Make, data: bytes, blob_id: str, path: str
) -> None:
    with RangeServer(blobs) as server:
        backend = make("http-proxy", addr=server.url, path=path)
        assert backend.read(blob_id, 0, 10, deadline=soon()) == data[:10]
        (seen,) = server.seen
        assert seen.path.isascii()
        assert not set(seen.path) & set(" \r\n\0#")
        assert "X" not in seen.headers


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("registry", {"host": "h", "repo": "r", "mirrors": [{"host": "http://m", "headers": h}]})
        for h in ({"X-A": "Ж"}, {"X A": "b"}, {"X": "a\r\nY: b"}, {"": "b"}, {"X": 5})
    ]
    + [
        ("registry", {"host": "h", "repo": "r", "registry_token": "Ж"}),
        ("s3", {"region": "Ж", "bucket_name": "b"}),
        (
            "s3",
            {"region": "r", "bucket_name": "b", "access_key_id": "a\nb"},
        ),
        ("s3", {"region": "r", "bucket_name": "b", "endpoint": "h/path"}),
        ("oss", {"endpoint": "h", "bucket_name": "b", "access_key_id": "é"}),
        ("oss", {"endpoint": "h/path", "bucket_name": "b"}),
        ("registry", {"host": "h", "repo": "r", "blob_redirected_host": "[::1"}),
        ("registry", {"host": "h", "repo": "r", "blob_redirected_host": "h/path"}),
    ],
)
def test_characters_that_http_cannot_carry_are_told_at_once(
    make: Make, kind: str, options: dict[str, object]
) -> None:
    with pytest.raises(UsageError):
        make(kind, **options)


def test_an_empty_scheme_is_an_absent_one() -> None:
    for kind, table in (
        ("registry", {"host": "127.0.0.1:1", "repo": "r"}),
        ("oss", {"endpoint": "127.0.0.1:1", "bucket_name": "b"}),
        ("s3", {"endpoint": "127.0.0.1:1", "bucket_name": "b", "region": "r"}),
    ):
        names = ("scheme", "auth", "registry_token", "blob_url_scheme", "blob_redirected_host")
        empty = dict.fromkeys(names if kind == "registry" else ("scheme", "object_prefix"), "")
        more: dict[str, object] = {"proxy": {"url": "", "ping_url": ""}, "retry_limit": 1}
        options = {**table, **empty, **more}
        backend = make_backend({"type": kind, kind: options})
        with pytest.raises(BackendError, match=r"https://127\.0\.0\.1:1: Connection refused"):
            backend.size("x", deadline=soon())
        backend.close()
