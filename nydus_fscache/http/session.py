"""HTTP off the data path: tokens, manifests, whole blobs, uploads.

Every call ends at its deadline: name resolution is waited for no longer, silence is
bounded by ``stall_s``, and a watchdog shuts the socket down when the time is over, so
that neither a head nor a body that trickles can hold the caller.  Redirects follow
``RedirectRules``; headers that belong to the origin stay there.  Messages never hold a
query.

What is small and needs no proxy goes over connections of our own (``http.direct``).  For the rest
``requests`` is imported (0.2 s, 11 MB).
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from nydus_fscache.config.http_options import HttpOptions
from nydus_fscache.config.url import Url
from nydus_fscache.errors import BackendError
from nydus_fscache.http.call import Call, SessionAnswer, Upload
from nydus_fscache.http.dial import resolve
from nydus_fscache.http.direct import Direct
from nydus_fscache.http.redirect import MAX_HOPS, REDIRECTS, RedirectRules, too_many_hops
from nydus_fscache.http.tls import CERTIFICATE_HINT, HANDSHAKE_HINT, tls_context
from nydus_fscache.http.wire import Deadline

if TYPE_CHECKING:
    import ssl

    import requests

_PARALLEL = 32  # connections that are kept for each host
_KEEP_METHOD = frozenset((307, 308))


class _Answer(SessionAnswer):
    def __init__(self, response: requests.Response, url: Url, guard: _Guard) -> None:
        headers = {name.lower(): value for name, value in response.headers.items()}
        super().__init__(url, int(response.status_code), headers)
        self._response = response
        self._guard = guard

    def readinto(self, buf: memoryview) -> int:
        with _translated(self.url, self._guard):
            data: bytes = self._response.raw.read(len(buf), decode_content=False)
        buf[: len(data)] = data
        self._guard.check(self.url)  # a socket that was shut down looks like an end
        return len(data)

    def close(self) -> None:
        self._guard.end()
        self._response.close()


class Session:
    """Thread-safe.  ``environment_proxies``: heed HTTP_PROXY, HTTPS_PROXY and NO_PROXY."""

    def __init__(
        self,
        options: HttpOptions,
        rules: RedirectRules = RedirectRules(),  # noqa: B008 - a frozen value
        *,
        environment_proxies: bool = False,
    ) -> None:
        self._options = options
        self._rules = rules
        self._environment_proxies = environment_proxies
        self._lock = threading.Lock()
        self._requests: requests.Session | None = None
        self._direct = Direct(options)

    def close(self) -> None:
        self._direct.close()
        with self._lock:
            if self._requests is not None:
                self._requests.close()

    def send(self, call: Call, deadline: Deadline) -> SessionAnswer:
        """Any answer but a redirect; the body is still to come."""
        url, method, body = call.url, call.method, call.body
        for _ in range(MAX_HOPS + 1):
            own = call.own_headers if url.origin == call.url.origin else {}
            answer = self._send(Call(method, url, {**call.headers, **own}, {}, body), deadline)
            if answer.status not in REDIRECTS:
                return answer
            answer.close()
            there = self._rules.target(call.url, url, answer.headers.get("location", ""))
            if answer.status not in _KEEP_METHOD and method not in ("GET", "HEAD"):
                method, body = "GET", b""
            url = there
        raise too_many_hops(call.url)

    def send_once(self, call: Call, deadline: Deadline) -> SessionAnswer:
        """Whatever the server answers, a redirect too."""
        headers = {**call.headers, **call.own_headers}
        return self._send(Call(call.method, call.url, headers, {}, call.body), deadline)

    def _send(self, call: Call, deadline: Deadline) -> SessionAnswer:
        proxy = self._options.proxy
        if proxy is None:
            proxies = self._environment(call.url)
            if not proxies and self._direct.takes(call):
                return self._direct.send(call, deadline)
            return self._exchange(call, deadline, proxies)
        login = ""
        if proxy.credentials:
            user, _, password = proxy.credentials.partition(":")
            login = f"{quote(user, safe='')}:{quote(password, safe='')}@"
        text = f"{proxy.url.scheme}://{login}{proxy.url.authority}"
        url = call.url.as_http() if proxy.use_http else call.url
        proxied = Call(call.method, url, call.headers, {}, call.body)
        try:
            answer = self._exchange(proxied, deadline, {"http": text, "https": text}, proxy.url)
        except BackendError:
            if not proxy.fallback:
                raise
        else:
            if answer.status < 500 or not proxy.fallback:
                return answer
            answer.close()
        return self._exchange(call, deadline, {})

    def environment_proxy(self, url: Url) -> str:
        """What the environment names for ``url``, as a URL; empty for none."""
        found = self._environment(url)
        proxy = found.get(url.scheme) or found.get("all") or ""
        return proxy if "://" in proxy or not proxy else f"http://{proxy}"

    def _environment(self, url: Url) -> dict[str, str]:
        if not self._environment_proxies or not any(map(_names_proxy, os.environ)):
            return {}
        from requests.utils import get_environ_proxies  # noqa: PLC0415 - 0.2 s

        return {k: str(v) for k, v in get_environ_proxies(f"{url.base}/", no_proxy=None).items()}

    def _exchange(
        self, call: Call, deadline: Deadline, proxies: dict[str, str], hop: Url | None = None
    ) -> SessionAnswer:
        if not proxies or hop is not None:
            resolve(hop or call.url, deadline)  # requests would wait for the resolver's own time
        session = self._session()
        guard = _Guard(deadline)
        body: Any = call.body
        length = len(call.body) if isinstance(call.body, bytes) else call.body.length
        response = None
        try:
            with _translated(call.url, guard):
                if isinstance(call.body, Upload):
                    body = call.body.open()
                request = _prepared(session, call, body, length)
                stall_s = deadline.wait_s()
                response = session.send(
                    request,
                    stream=True,
                    timeout=(min(stall_s, self._options.connect_s), stall_s),
                    allow_redirects=False,
                    proxies=proxies,
                )
            guard.check(call.url)  # a head that was cut looks like a short one
        except BaseException:
            guard.end()
            if response is not None:
                response.close()
            raise
        finally:
            _active.guard = None
            if isinstance(call.body, Upload) and hasattr(body, "close"):
                body.close()
        return _Answer(response, call.url, guard)

    def _session(self) -> requests.Session:
        with self._lock:
            if self._requests is None:
                tls = self._options.tls
                self._requests = _make(tls_context(tls), tls.skip_verify)
            return self._requests


def _names_proxy(variable: str) -> bool:
    return variable.lower().endswith("_proxy")


_active = threading.local()  # the guard of the call that this thread makes


class _Guard:
    """Shuts the connection of one call down when its time is over."""

    def __init__(self, deadline: Deadline) -> None:
        self._connection: Any = None
        self._began = time.monotonic()
        self._left = deadline.left()
        self.expired = False
        deadline.wait_s()  # raises when it is over already
        self._timer = threading.Timer(self._left, self._expire)
        self._timer.daemon = True
        self._timer.start()
        _active.guard = self

    def hold(self, connection: Any) -> None:
        self._connection = connection

    def _expire(self) -> None:
        self.expired = True
        sock = getattr(self._connection, "sock", None)
        if sock is not None:
            with suppress(OSError):
                # not SSLSocket's own: after it, the reader would take ciphertext for data
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def check(self, url: Url) -> None:
        if self.expired:
            raise BackendError(
                f"{url.base}: not done in {self._left:.0f} s", hint="the server is slow",
                retryable=True,
            )  # fmt: skip

    def end(self) -> None:
        self._timer.cancel()


def _prepared(
    session: requests.Session, call: Call, body: Any, length: int
) -> requests.PreparedRequest:
    import requests  # noqa: PLC0415 - 0.2 s

    text = f"{call.url.base}{call.url.target}"
    headers = {"Accept-Encoding": "identity", **call.headers}
    prepared = session.prepare_request(requests.Request(call.method, text, headers=headers))
    prepared.url = text  # as it was given: a signature is over these bytes
    if length or call.method in ("POST", "PUT", "PATCH"):
        prepared.headers["Content-Length"] = str(length)
        prepared.body = body if length else None
    return prepared


def _make(context: ssl.SSLContext, skip_verify: bool) -> requests.Session:
    """A session that trusts the context alone, and shows its connections to the guard."""
    import requests  # noqa: PLC0415 - 0.2 s
    import urllib3  # noqa: PLC0415 - likewise
    from requests.adapters import HTTPAdapter  # noqa: PLC0415 - likewise
    from urllib3.connection import HTTPConnection, HTTPSConnection  # noqa: PLC0415
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool  # noqa: PLC0415

    # at DEBUG it writes whole URLs, and a query is a signature
    logging.getLogger("urllib3").setLevel(logging.WARNING)
    if skip_verify:  # the administrator asked for it; one warning a request helps nobody
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)

    def shown(connection: Any) -> None:
        guard = getattr(_active, "guard", None)
        if guard is not None:
            guard.hold(connection)

    class Guarded(HTTPConnection):
        def connect(self) -> None:
            shown(self)
            super().connect()

        def putrequest(self, *args: Any, **kwargs: Any) -> None:
            shown(self)
            super().putrequest(*args, **kwargs)

    class Encrypted(Guarded, HTTPSConnection):
        """Python looks in Guarded first, then in HTTPSConnection, then in HTTPConnection."""

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Guarded

    class EncryptedPool(HTTPSConnectionPool):
        ConnectionCls = Encrypted

    classes = {"http": PlainPool, "https": EncryptedPool}

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, ssl_context=context, **kwargs)
            self.poolmanager.pool_classes_by_scheme = classes

        def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
            manager = super().proxy_manager_for(proxy, ssl_context=context, **kwargs)
            manager.pool_classes_by_scheme = classes
            return manager

        def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
            """The context has the authorities: requests would add its own bundle."""
            conn.cert_reqs = "CERT_NONE" if skip_verify else "CERT_REQUIRED"

    class Unredirected(requests.Session):
        def get_redirect_target(self, resp: Any) -> None:
            """Redirects are ours: even unfollowed, requests would parse them."""

    session = Unredirected()
    session.trust_env = False  # neither .netrc nor REQUESTS_CA_BUNDLE
    session.verify = not skip_verify
    session.headers.clear()
    session.mount("http://", Adapter(pool_maxsize=_PARALLEL))
    session.mount("https://", Adapter(pool_maxsize=_PARALLEL))
    return session


@contextmanager
def _translated(url: Url, guard: _Guard) -> Iterator[None]:
    """Exceptions of requests and urllib3 as ours, without their texts, which show the query."""
    import requests  # noqa: PLC0415 - 0.2 s
    import urllib3  # noqa: PLC0415 - likewise

    try:
        yield
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as e:
        guard.check(url)
        raise _error(url, e) from None


def _error(url: Url, error: BaseException) -> BackendError:
    import ssl  # noqa: PLC0415 - requests has loaded it

    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return BackendError(
                f"{url.base}: certificate refused: {cause.verify_message}",
                hint=CERTIFICATE_HINT,
            )
    for cause in causes:
        if isinstance(cause, ssl.SSLError):
            return BackendError(
                f"{url.base}: TLS handshake failed: {cause.reason}",
                hint=HANDSHAKE_HINT,
            )
        if isinstance(cause, TimeoutError):
            return BackendError(f"{url.base}: no answer in time", retryable=True)
        if isinstance(cause, OSError) and cause.strerror:
            return BackendError(
                f"{url.base}: {cause.strerror}",
                hint="is it running, and reachable from here?",
                retryable=True,
            )
    return BackendError(
        f"{url.base}: the exchange broke ({type(causes[-1]).__name__})", retryable=True
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and those within it, the outermost first."""
    seen: set[int] = set()
    queue = [error]
    while queue:
        one = queue.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        inner = (one.__cause__, one.__context__, getattr(one, "reason", None), *one.args)
        queue += [cause for cause in inner if isinstance(cause, BaseException)]
