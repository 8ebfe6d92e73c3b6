"""Makes connections: name, address, proxy, TLS; each step within the deadline of its request."""

from __future__ import annotations

import queue
import socket
import threading
from base64 import b64encode
from typing import TYPE_CHECKING

from nydus_fscache.config.http_options import Tls
from nydus_fscache.config.url import Url
from nydus_fscache.errors import BackendError, UsageError
from nydus_fscache.http.tls import CERTIFICATE_HINT, HANDSHAKE_HINT, tls_context
from nydus_fscache.http.wire import Connection, Deadline
from rafs_v6.values import dataclass

if TYPE_CHECKING:
    import ssl


@dataclass(frozen=True, slots=True)
class ForwardProxy:
    """An HTTP proxy: ``http`` is asked by absolute URL, ``https`` through a tunnel."""

    url: Url
    credentials: str = ""  # user:password

    def headers(self) -> dict[str, str]:
        if not self.credentials:
            return {}
        return {"Proxy-Authorization": f"Basic {b64encode(self.credentials.encode()).decode()}"}


class Dialer:
    """Thread-safe."""

    def __init__(self, tls: Tls, timeout_s: float) -> None:
        self._tls = tls
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        if tls.ca_cert_files or tls.client_cert_file:
            self._tls_context()  # wrong files are told at once, not by the first read

    def connect(self, url: Url, proxy: ForwardProxy | None, deadline: Deadline) -> Connection:
        hop = proxy.url if proxy else url
        peer = url.base if proxy is None else f"{url.base} through {hop.base}"
        deadline = Deadline(deadline.at, min(deadline.stall_s, self._timeout_s))
        sock = _dial(hop, deadline)
        try:
            if hop.scheme == "https":
                sock = self._wrap(sock, hop, deadline)
            if proxy and url.scheme == "https":
                if hop.scheme == "https":
                    raise UsageError(
                        f"{hop.base}: a tunnel inside TLS is not supported",
                        hint="give the proxy as http://, or set proxy.use_http",
                    )
                _tunnel(sock, url, proxy, deadline)
                sock = self._wrap(sock, url, deadline)
        except BaseException:
            sock.close()
            raise
        return Connection(sock, peer)

    def _tls_context(self) -> ssl.SSLContext:
        with self._lock:
            if self._context is None:
                self._context = tls_context(self._tls)
            return self._context

    def _wrap(self, sock: socket.socket, url: Url, deadline: Deadline) -> socket.socket:
        import ssl  # noqa: PLC0415 - as in tls.py

        sock.settimeout(deadline.wait_s())
        try:
            return self._tls_context().wrap_socket(sock, server_hostname=url.host)
        except ssl.SSLCertVerificationError as e:
            raise BackendError(
                f"{url.base}: certificate refused: {e.verify_message}",
                hint=CERTIFICATE_HINT,
            ) from e
        except TimeoutError as e:
            raise BackendError(f"{url.base}: no TLS handshake in time", retryable=True) from e
        except ssl.SSLError as e:
            raise BackendError(
                f"{url.base}: TLS handshake failed: {e.reason}",
                hint=HANDSHAKE_HINT,
            ) from e
        except OSError as e:
            raise BackendError(f"{url.base}: TLS handshake broke: {e}", retryable=True) from e


def _dial(url: Url, deadline: Deadline) -> socket.socket:
    if url.scheme == "unix":
        return _dial_one(socket.AF_UNIX, url.host, url, deadline)
    addresses = resolve(url, deadline)
    for family, address in addresses[:-1]:
        try:
            return _dial_one(family, address, url, deadline)
        except BackendError:
            continue
    return _dial_one(*addresses[-1], url, deadline)


def _dial_one(family: int, address: object, url: Url, deadline: Deadline) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(deadline.wait_s())
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


Addresses = list[tuple[int, object]]


def resolve(url: Url, deadline: Deadline) -> Addresses:
    """IPv4 first.  In a thread, as getaddrinfo knows no time-out."""
    answers: queue.SimpleQueue[Addresses | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            # bytes are taken as they are: a string loads Unicode's tables, whatever is in it
            host = url.host.encode() if url.host.isascii() else url.host
            found = socket.getaddrinfo(host, url.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as e:
            answers.put(OSError(str(e)))
        else:
            found.sort(key=lambda entry: entry[0] != socket.AF_INET)
            answers.put([(entry[0], entry[4]) for entry in found])

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=deadline.wait_s())
    except queue.Empty:
        answer = OSError("no answer in time")
    if isinstance(answer, OSError):
        raise BackendError(
            f"cannot resolve {url.host}: {answer}",
            hint="check the host's name and the resolver (/etc/resolv.conf)",
            retryable=True,
        )
    return answer


def _tunnel(sock: socket.socket, url: Url, proxy: ForwardProxy, deadline: Deadline) -> None:
    host = f"[{url.host}]" if ":" in url.host else url.host
    lines = [f"CONNECT {host}:{url.port} HTTP/1.1", f"Host: {host}:{url.port}"]
    lines += [f"{name}: {value}" for name, value in proxy.headers().items()]
    head = b""
    try:
        sock.settimeout(deadline.wait_s())
        sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        # byte by byte: what follows the head belongs to TLS, and heads here are short
        while not head.endswith(b"\r\n\r\n") and len(head) < 4096:
            sock.settimeout(deadline.wait_s())
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
