"""Connections by destination: made with a deadline, kept alive, bounded in number.

A connection that was idle may have been closed by its server at any time, so a
failure before the first byte of its answer is repeated once on a new one (all
our requests are safe to repeat).  Nothing else is retried here.
"""

from __future__ import annotations

import queue
import select
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass

from nydus_fscache.backend.url import Url
from nydus_fscache.backend.wire import Clock, Connection, Request, Response
from nydus_fscache.errors import BackendError, UsageError

_IDLE_S = 55.0  # most servers and balancers close after 60
_MAX_IDLE = 16
_PARALLEL = 32  # exchanges at once of one pool


@dataclass(frozen=True, slots=True)
class Tls:
    """What to trust, and who we are."""

    skip_verify: bool = False
    ca_cert_files: tuple[str, ...] = ()
    client_cert_file: str = ""
    client_key_file: str = ""

    def context(self) -> ssl.SSLContext:
        """``UsageError`` when a file cannot be read."""
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        if self.skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        file = ""
        try:
            for file in self.ca_cert_files:
                context.load_verify_locations(file)
            if self.client_cert_file:
                file = self.client_cert_file
                context.load_cert_chain(file, self.client_key_file or None)
        except OSError as e:  # ssl.SSLError is one
            raise UsageError(f"cannot use {file}: {e}", hint="a PEM file is needed") from e
        return context


@dataclass(frozen=True, slots=True)
class ForwardProxy:
    """An HTTP proxy: ``http`` is asked by absolute URL, ``https`` through a tunnel."""

    url: Url
    credentials: str = ""  # user:password

    def headers(self) -> dict[str, str]:
        if not self.credentials:
            return {}
        return {"Proxy-Authorization": f"Basic {b64encode(self.credentials.encode()).decode()}"}


_Key = tuple[tuple[str, str, int], tuple[str, str, int] | None]


class PooledResponse:
    """An answer whose connection goes back to its pool when it is closed."""

    def __init__(self, pool: Pool, key: _Key, response: Response) -> None:
        self._pool = pool
        self._key = key
        self._response = response
        self._open = True
        self.status = response.status
        self.headers = response.headers
        self.peer = response.peer
        self.length = response.length
        self.declared_length = response.declared_length
        self.readinto = response.readinto
        self.read = response.read
        # told how the body went: "" when it came whole, else why not
        self.report: Callable[[str], None] | None = None

    def close(self) -> None:
        if self._open:
            self._open = False
            self._pool.take_back(self._key, self._response.give_back())


class Pool:
    """Thread-safe."""

    def __init__(self, tls: Tls, connect_timeout_s: float) -> None:
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        self._connect_timeout_s = connect_timeout_s
        self._lock = threading.Lock()
        self._idle: dict[_Key, list[Connection]] = {}
        self._slots = threading.BoundedSemaphore(_PARALLEL)
        self._closed = False
        if tls.ca_cert_files or tls.client_cert_file:
            self._tls_context()  # wrong files are told at once, not by the first read

    def exchange(
        self, request: Request, clock: Clock, proxy: ForwardProxy | None = None
    ) -> PooledResponse:
        """Send the request; the head of the answer has arrived when this returns."""
        if not self._slots.acquire(timeout=max(0.0, clock.left())):
            raise BackendError(f"{request.url.base}: too many requests at once", retryable=True)
        try:
            return self._exchange(request, clock, proxy)
        except BaseException:
            self._slots.release()
            raise

    def _exchange(
        self, request: Request, clock: Clock, proxy: ForwardProxy | None
    ) -> PooledResponse:
        key = (request.url.origin, proxy.url.origin if proxy else None)
        if proxy and request.url.scheme == "http":
            headers = {**request.headers, **proxy.headers()}
            request = Request(request.method, request.url, headers, request.body, absolute=True)
        connection = self._idle_connection(key)
        if connection is not None:
            try:
                return self._on(connection, key, request, clock)
            except BackendError as e:
                if not e.retryable or connection.timed_out:
                    raise
        return self._on(self._connect(request.url, proxy, clock), key, request, clock)

    def _on(
        self, connection: Connection, key: _Key, request: Request, clock: Clock
    ) -> PooledResponse:
        try:
            return PooledResponse(self, key, connection.exchange(request, clock))
        except BaseException:
            connection.close()
            raise

    def take_back(self, key: _Key, connection: Connection | None) -> None:
        self._slots.release()
        if connection is None:
            return
        connection.idle_since = time.monotonic()
        with self._lock:
            idle = self._idle.setdefault(key, [])
            if not self._closed and len(idle) < _MAX_IDLE:
                idle.append(connection)
                return
        connection.close()

    def _idle_connection(self, key: _Key) -> Connection | None:
        while True:
            with self._lock:
                idle = self._idle.get(key)
                if not idle:
                    return None
                connection = idle.pop()
            fresh = time.monotonic() - connection.idle_since < _IDLE_S
            poll = select.poll()
            poll.register(connection.fileno(), select.POLLIN)
            if fresh and not poll.poll(0):  # readable while idle: closed, or out of step
                return connection
            connection.close()

    def _connect(self, url: Url, proxy: ForwardProxy | None, clock: Clock) -> Connection:
        hop = proxy.url if proxy else url
        peer = url.base if proxy is None else f"{url.base} through {hop.base}"
        clock = Clock(clock.deadline, min(clock.stall_s, self._connect_timeout_s))
        sock = _dial(hop, clock)
        try:
            if hop.scheme == "https":
                sock = self._wrap(sock, hop, clock)
            if proxy and url.scheme == "https":
                if hop.scheme == "https":
                    raise UsageError(
                        f"{hop.base}: a tunnel inside TLS is not supported",
                        hint="give the proxy as http://, or set proxy.use_http",
                    )
                _tunnel(sock, url, proxy, clock)
                sock = self._wrap(sock, url, clock)
        except BaseException:
            sock.close()
            raise
        return Connection(sock, peer)

    def _tls_context(self) -> ssl.SSLContext:
        with self._lock:
            if self._context is None:
                self._context = self._tls.context()
            return self._context

    def _wrap(self, sock: socket.socket, url: Url, clock: Clock) -> socket.socket:
        sock.settimeout(clock.wait_s())
        try:
            return self._tls_context().wrap_socket(sock, server_hostname=url.host)
        except ssl.SSLCertVerificationError as e:
            raise BackendError(
                f"{url.base}: certificate refused: {e.verify_message}",
                hint="name its authority in ca_cert_files (or, unsafe, set skip_verify)",
            ) from e
        except TimeoutError as e:
            raise BackendError(f"{url.base}: no TLS handshake in time", retryable=True) from e
        except ssl.SSLError as e:
            raise BackendError(
                f"{url.base}: TLS handshake failed: {e.reason}",
                hint="does the server speak https? plain http must be asked for (scheme http)",
            ) from e
        except OSError as e:
            raise BackendError(f"{url.base}: TLS handshake broke: {e}", retryable=True) from e

    def close(self) -> None:
        with self._lock:
            self._closed = True
            left = [c for idle in self._idle.values() for c in idle]
            self._idle.clear()
        for connection in left:
            connection.close()


def _dial(url: Url, clock: Clock) -> socket.socket:
    if url.scheme == "unix":
        return _dial_one(socket.AF_UNIX, url.host, url, clock)
    addresses = _resolve(url, clock)
    for family, address in addresses[:-1]:
        try:
            return _dial_one(family, address, url, clock)
        except BackendError:
            continue
    return _dial_one(*addresses[-1], url, clock)


def _dial_one(family: int, address: object, url: Url, clock: Clock) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(clock.wait_s())
        sock.connect(address)  # type: ignore[arg-type]  # what getaddrinfo gave, or a path
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as e:
        sock.close()
        what = "no connection in time" if isinstance(e, TimeoutError) else e.strerror or str(e)
        raise BackendError(
            f"{url.base}: {what}", hint="is it running, and reachable from here?", retryable=True
        ) from e
    except BaseException:
        sock.close()
        raise
    return sock


_Addresses = list[tuple[int, object]]


def _resolve(url: Url, clock: Clock) -> _Addresses:
    """IPv4 first.  In a thread, as getaddrinfo knows no time-out."""
    answers: queue.SimpleQueue[_Addresses | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as e:
            answers.put(OSError(str(e)))
        else:
            found.sort(key=lambda entry: entry[0] != socket.AF_INET)
            answers.put([(entry[0], entry[4]) for entry in found])

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=clock.wait_s())
    except queue.Empty:
        answer = OSError("no answer in time")
    if isinstance(answer, OSError):
        raise BackendError(
            f"cannot resolve {url.host}: {answer}",
            hint="check the host's name and the resolver (/etc/resolv.conf)",
            retryable=True,
        )
    return answer


def _tunnel(sock: socket.socket, url: Url, proxy: ForwardProxy, clock: Clock) -> None:
    host = f"[{url.host}]" if ":" in url.host else url.host
    lines = [f"CONNECT {host}:{url.port} HTTP/1.1", f"Host: {host}:{url.port}"]
    lines += [f"{name}: {value}" for name, value in proxy.headers().items()]
    head = b""
    try:
        sock.settimeout(clock.wait_s())
        sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        # byte by byte: what follows the head belongs to TLS, and heads here are short
        while not head.endswith(b"\r\n\r\n") and len(head) < 4096:
            sock.settimeout(clock.wait_s())
            byte = sock.recv(1)
            if not byte:
                break
            head += byte
    except OSError as e:
        raise BackendError(f"proxy {proxy.url.base}: {e}", retryable=True) from e
    status = head.split(b" ", 2)[1:2]
    if status != [b"200"]:
        code = status[0].decode("latin-1") if status else "nothing"
        raise BackendError(
            f"proxy {proxy.url.base} answers {code} to CONNECT {host}:{url.port}",
            hint="may this proxy reach the backend?",
            retryable=True,
        )
