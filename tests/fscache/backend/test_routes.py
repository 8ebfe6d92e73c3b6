"""Mirrors, proxies and their health: which way a request takes, and what it carries."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

import pytest
import trustme
from backend_kit import Make, soon
from rangeserver import Fault, RangeServer
from servers import AUTH

from nydus_fscache.errors import BackendError

GONE = "http://127.0.0.1:1"


def read(backend, blob_id: str) -> bytes:
    return backend.read(blob_id, 100, 1000, deadline=soon())


def registry(make: Make, origin: RangeServer, **options: object):
    return make("registry", scheme="http", host=origin.host, repo="a/b", timeout=0.5, **options)


def test_first_mirror_that_works_serves(
    blobs: Path, make: Make, data: bytes, blob_id: str, tmp_path: Path
) -> None:
    with RangeServer(blobs) as origin, RangeServer(tmp_path) as empty, RangeServer(blobs) as full:
        mirrors = [
            {"host": GONE},
            {"host": empty.url},
            {"host": f"{full.url}/hub", "headers": {"X-Registry": "origin.example"}},
        ]
        backend = registry(make, origin, mirrors=mirrors, auth=AUTH)
        for _ in range(5):
            assert read(backend, blob_id) == data[100:1100]
        assert not origin.seen
        assert full.seen[0].path == f"/hub/v2/a/b/blobs/sha256:{blob_id}"
        assert full.seen[0].headers["X-Registry"] == "origin.example"

        full.always = Fault(status=500)
        for _ in range(5):
            assert read(backend, blob_id) == data[100:1100]
        assert len(origin.seen) == 5
        assert len(full.seen) == 5 + 3  # then it rests


def test_credentials_never_go_to_a_mirror(blobs: Path, make: Make, blob_id: str) -> None:
    def origin_route(
        method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes] | None:
        if headers.get("Authorization") == f"Basic {AUTH}":
            return None
        return 401, {"WWW-Authenticate": "Basic"}, b""

    def curious(*_: object) -> tuple[int, dict[str, str], bytes]:
        return 401, {"WWW-Authenticate": "Basic"}, b""

    with RangeServer(blobs, route=origin_route) as origin, RangeServer(blobs, route=curious) as m:
        backend = registry(make, origin, mirrors=[{"host": m.url}], auth=AUTH)
        read(backend, blob_id)
        read(backend, blob_id)
        assert m.seen
        assert all("Authorization" not in seen.headers for seen in m.seen)


def test_mirror_that_lies_is_left_for_that_blob(
    blobs: Path, make: Make, data: bytes, blob_id: str
) -> None:
    with RangeServer(blobs) as origin, RangeServer(blobs) as mirror:
        mirror.always = Fault(corrupt=True)
        backend = registry(make, origin, mirrors=[{"host": mirror.url}])
        assert read(backend, blob_id) != data[100:1100]  # only a digest can tell
        asked_at = time.monotonic()
        assert backend.mark_corrupt(blob_id, asked_at)
        assert backend.mark_corrupt(blob_id, asked_at)  # another range that was under way
        assert read(backend, blob_id) == data[100:1100]
        assert not backend.mark_corrupt(blob_id, time.monotonic())  # nobody else is left


def test_mirror_that_breaks_in_the_middle(
    blobs: Path, make: Make, data: bytes, blob_id: str
) -> None:
    with RangeServer(blobs) as origin, RangeServer(blobs) as mirror:
        mirror.faults.append(Fault(reset=True, after=64 << 10))
        backend = registry(make, origin, mirrors=[{"host": mirror.url}])
        assert backend.read(blob_id, 0, 1 << 20, deadline=soon()) == data


@pytest.mark.parametrize("fault", [Fault(shift=8), Fault(wrong_length=-8), Fault(status=416)])
def test_mirror_that_mistakes_ranges(
    blobs: Path, make: Make, data: bytes, blob_id: str, fault: Fault
) -> None:
    with RangeServer(blobs) as origin, RangeServer(blobs) as mirror:
        mirror.always = fault
        backend = registry(make, origin, mirrors=[{"host": mirror.url}])
        assert read(backend, blob_id) == data[100:1100]


def test_mirror_that_hangs_leaves_time_for_the_origin(
    blobs: Path, make: Make, data: bytes, blob_id: str
) -> None:
    with RangeServer(blobs) as origin, RangeServer(blobs, latency_ms=5000) as mirror:
        backend = registry(make, origin, mirrors=[{"host": mirror.url}])
        started = time.monotonic()
        assert read(backend, blob_id) == data[100:1100]
        assert time.monotonic() - started < 1.5


def test_proxy_serves_and_is_told_what_dragonfly_wants(
    blobs: Path, make: Make, data: bytes, blob_id: str
) -> None:
    with RangeServer(blobs) as origin, RangeServer(blobs) as proxy:
        url = proxy.url.replace("http://", "http://user:pw@")
        backend = registry(make, origin, proxy={"url": url})
        assert read(backend, blob_id) == data[100:1100]
        with backend.stream(blob_id, 0, 10, deadline=soon(), prefetch=True) as stream:
            stream.readinto(memoryview(bytearray(10)))
        assert not origin.seen
        demand, prefetch = proxy.seen
        assert demand.path == f"http://{origin.host}/v2/a/b/blobs/sha256:{blob_id}"
        assert demand.headers["Proxy-Authorization"] == "Basic dXNlcjpwdw=="
        assert demand.headers["X-Dragonfly-Use-P2P"] == "true"
        assert demand.headers["X-Dragonfly-Priority"] == "6"
        assert "X-Dragonfly-Prefetch" not in demand.headers
        assert prefetch.headers["X-Dragonfly-Priority"] == "3"
        assert prefetch.headers["X-Dragonfly-Prefetch"] == "true"


@pytest.mark.parametrize("fault", [Fault(status=502), Fault(close=True)], ids=str)
def test_proxy_falls_back(blobs: Path, make: Make, data: bytes, blob_id: str, fault: Fault) -> None:
    with RangeServer(blobs) as origin, RangeServer(blobs) as proxy:
        proxy.always = fault
        assert read(registry(make, origin, proxy={"url": proxy.url}), blob_id) == data[100:1100]
        strict = registry(make, origin, proxy={"url": proxy.url, "fallback": False}, retry_limit=1)
        before = len(origin.seen)
        with pytest.raises(BackendError):
            read(strict, blob_id)
        assert len(origin.seen) == before


def test_unreachable_proxy(blobs: Path, make: Make, data: bytes, blob_id: str) -> None:
    with RangeServer(blobs) as origin:
        assert read(registry(make, origin, proxy={"url": GONE}), blob_id) == data[100:1100]
        strict = registry(make, origin, proxy={"url": GONE, "fallback": False}, retry_limit=1)
        with pytest.raises(BackendError, match=r"http://127\.0\.0\.1:1: "):
            read(strict, blob_id)


def test_health_checks_take_out_and_bring_back(
    blobs: Path, make: Make, data: bytes, blob_id: str
) -> None:
    healthy = False

    def ping(
        method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes] | None:
        if path == "/ping":
            return (200 if healthy else 503), {}, b""
        return None

    with RangeServer(blobs) as origin, RangeServer(blobs, route=ping) as proxy:
        options = {"url": proxy.url, "ping_url": f"{proxy.url}/ping", "check_interval": 0.05}
        backend = registry(make, origin, proxy=options)

        def goes_through(server: RangeServer) -> bool:
            before = len([s for s in server.seen if s.path != "/ping"])
            assert read(backend, blob_id) == data[100:1100]
            return len([s for s in server.seen if s.path != "/ping"]) > before

        wait_until(lambda: goes_through(origin))
        healthy = True
        wait_until(lambda: goes_through(proxy))


def wait_until(condition) -> None:
    deadline = time.monotonic() + 3
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.03)


class Tunnel:
    """An HTTP proxy that knows CONNECT, for one connection after the other."""

    def __init__(self, target: int) -> None:
        import socket
        import threading

        self.target = target
        self.asked: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        import socket
        import threading

        def pump(source: socket.socket, sink: socket.socket) -> None:
            try:
                while piece := source.recv(65536):
                    sink.sendall(piece)
                sink.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            finally:
                source.close()

        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.asked.append(client.recv(4096))
            client.sendall(b"HTTP/1.1 200 go ahead\r\n\r\n")
            server = socket.create_connection(("127.0.0.1", self.target))
            for pair in ((client, server), (server, client)):
                threading.Thread(target=pump, args=pair, daemon=True).start()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_https_goes_through_a_tunnel(
    blobs: Path, make: Make, data: bytes, blob_id: str, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("origin.example").configure_cert(context)
    with RangeServer(blobs, tls=context) as origin:
        tunnel = Tunnel(origin.port)
        backend = make(
            "registry",
            host="origin.example",  # has no address: only the proxy can reach it
            repo="a",
            ca_cert_files=[str(tmp_path / "ca.pem")],
            proxy={"url": tunnel.url, "fallback": False},
        )
        assert backend.read(blob_id, 0, len(data), deadline=soon()) == data
        assert tunnel.asked[0].startswith(b"CONNECT origin.example:443 HTTP/1.1\r\n")
        tunnel.listener.close()


def test_https_over_http_to_the_proxy_when_asked(
    blobs: Path, make: Make, data: bytes, blob_id: str
) -> None:
    with RangeServer(blobs) as proxy:
        options = {"url": proxy.url, "fallback": False, "use_http": True}
        backend = make("registry", host="origin.example", repo="a", proxy=options)
        assert read(backend, blob_id) == data[100:1100]
        assert proxy.seen[0].path.startswith("http://origin.example/v2/a/")
