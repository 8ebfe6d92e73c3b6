"""Which way a request takes: a mirror, a proxy, or straight to the origin.

Mirrors are tried in their order, the origin last (manifests come from it alone);
each way that fails rests for a while, and a health check (``ping_url``) brings it
back sooner.  What belongs to the origin (credentials, signatures) is never sent
to a mirror: a request that may be mirrored carries none, and ``authorise`` adds
them for the origin only.
A way whose bytes turned out to be wrong is not used for that blob again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from nydus_fscache.config.options import Options, parse_url
from nydus_fscache.errors import BackendError, UsageError
from nydus_fscache.http.dial import ForwardProxy
from nydus_fscache.http.pool import Pool, PooledResponse
from nydus_fscache.http.url import Url
from nydus_fscache.http.wire import Clock, Request

log = logging.getLogger("backend")

_FAILURES = 3  # in a row, before a way rests
_REST_S = 30.0
_GOOD = (200, 206)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that has no destination yet."""

    method: str
    headers: dict[str, str]
    clock: Clock
    prefetch: bool = False


@dataclass(slots=True)
class _Way:
    """``url``: what is pinged.  Counters are racy by design: they only steer."""

    name: str
    ping: Url | None
    failures: int = 0
    rests_until: float = 0.0
    limit: int = _FAILURES
    headers: dict[str, str] = field(default_factory=dict)

    def usable(self) -> bool:
        return time.monotonic() >= self.rests_until

    def report(self, why: str) -> None:
        """How a body went that came this way: empty when it came whole."""
        if why:
            self.failed(why)
        else:
            self.failures = 0

    def failed(self, why: str) -> None:
        self.failures += 1
        if self.failures >= self.limit:
            self.rest(why)

    def rest(self, why: str) -> None:
        if self.usable():
            log.warning("%s is left out for a while: %s", self.name, why)
        self.rests_until = time.monotonic() + _REST_S
        self.failures = 0


@dataclass(slots=True)
class _Mirror:
    base: Url
    way: _Way


class Routes:
    """Owns the health checks, which end with the event ``closing``; thread-safe."""

    def __init__(
        self, pool: Pool, options: Options, connect_timeout_s: float, closing: threading.Event
    ) -> None:
        self._pool = pool
        self._connect_timeout_s = connect_timeout_s
        self._closing = closing
        self._distrusted: dict[str, float] = {}  # since when
        self._interval_s = 5.0
        self._last_used = time.monotonic()
        self._take_proxy(options.table("proxy"))
        self._mirrors = [_mirror(table) for table in options.tables("mirrors")]
        ways = [mirror.way for mirror in self._mirrors]
        if self._proxy_way is not None:
            ways.append(self._proxy_way)
        self._pinged = [way for way in ways if way.ping is not None]
        if self._pinged:
            threading.Thread(target=self._check_health, name="ping", daemon=True).start()

    def _take_proxy(self, options: Options) -> None:
        url, ping = options.text("url", ""), options.url("ping_url")
        self._fallback = options.flag("fallback", True)
        self._interval_s = options.number("check_interval", 5) or 5.0
        self._pause_s = options.number("check_pause_elapsed", 300)
        self._use_http = options.flag("use_http")
        options.ignore("dragonfly_scheduler_endpoint")  # needs Dragonfly's own client library
        options.end()
        self._proxy: ForwardProxy | None = None
        self._proxy_way: _Way | None = None
        if url:
            self._proxy = _forward_proxy(url, f"{options.kind}.url")
            self._proxy_way = _Way(f"proxy {self._proxy.url.base}", ping)

    def send(
        self, url: Url, ask: Ask, *, authorise: Callable[[], dict[str, str]], blob_id: str
    ) -> PooledResponse:
        """The first useful answer of a mirror, else whatever the origin answers."""
        self._last_used = time.monotonic()
        for mirror in self._usable_mirrors(blob_id):
            response = self._try_mirror(mirror, url, ask)
            if response is not None:
                return response
        return self.send_to(url, ask, authorise(), blob_id=blob_id)

    def send_to(self, url: Url, ask: Ask, extra: dict[str, str], *, blob_id: str) -> PooledResponse:
        """To this host and no other, through the proxy while that works."""
        request = Request(ask.method, url, {**ask.headers, **extra})
        proxy, way = self._proxy, self._proxy_way
        if proxy is None or way is None or (self._fallback and blob_id in self._distrusted):
            return self._pool.exchange(request, ask.clock)
        if not way.usable() and self._fallback:
            return self._pool.exchange(request, ask.clock)
        if not way.usable() and way.ping is not None:  # else only a request can tell
            raise BackendError(
                f"{way.name} does not work", hint="or set proxy.fallback", retryable=True
            )
        try:
            response = self._pool.exchange(self._proxied(request, ask), ask.clock, proxy)
        except BackendError as e:
            way.failed(str(e))
            if not self._fallback:
                raise
        else:
            refused = response.headers.get("x-dragonfly-error-type") == "proxy"
            if response.status < 500 and not refused:
                response.report = way.report
                return response
            way.failed(f"it answers {response.status}")
            if not self._fallback:
                return response
            response.close()
        return self._pool.exchange(request, ask.clock)

    def _proxied(self, request: Request, ask: Ask) -> Request:
        headers = {
            **request.headers,
            "X-Dragonfly-Use-P2P": "true",
            "X-Dragonfly-Priority": "3" if ask.prefetch else "6",
        }
        if ask.prefetch:
            headers["X-Dragonfly-Prefetch"] = "true"
        url = request.url
        if self._use_http and url.scheme == "https":
            url = Url("http", url.host, 80 if url.port == 443 else url.port, url.target)
        return Request(request.method, url, headers)

    def _usable_mirrors(self, blob_id: str) -> Iterator[_Mirror]:
        if blob_id and blob_id not in self._distrusted:
            yield from (m for m in self._mirrors if m.way.usable())

    def _try_mirror(self, mirror: _Mirror, url: Url, ask: Ask) -> PooledResponse | None:
        prefix = mirror.base.target.rstrip("/")
        base = mirror.base
        there = Url(base.scheme, base.host, base.port, prefix + url.target)
        request = Request(ask.method, there, {**ask.headers, **mirror.way.headers})
        # a mirror that hangs must leave time for the others and for the origin
        half = time.monotonic() + ask.clock.left() / 2
        clock = Clock(half, ask.clock.stall_s)
        try:
            response = self._pool.exchange(request, clock)
        except BackendError as e:
            mirror.way.failed(str(e))
            return None
        if response.status in _GOOD:
            response.report = mirror.way.report
            return response
        if response.status != 404:  # a mirror need not have everything
            mirror.way.failed(f"it answers {response.status}")
        response.close()
        return None

    def distrust(self, blob_id: str, asked_at: float) -> bool:
        """The origin only for this blob from now on; see ``Backend.distrust``."""
        if not (self._mirrors or (self._proxy and self._fallback)):
            return False
        return asked_at <= self._distrusted.setdefault(blob_id, time.monotonic())

    def _check_health(self) -> None:
        while not self._closing.wait(self._interval_s):
            if self._pause_s and time.monotonic() - self._last_used > self._pause_s:
                continue  # nobody reads: do not wake machines up
            for way in self._pinged:
                self._ping(way)

    def _ping(self, way: _Way) -> None:
        assert way.ping is not None
        wait_s = self._connect_timeout_s
        clock = Clock(time.monotonic() + wait_s, wait_s)
        try:
            response = self._pool.exchange(Request("GET", way.ping), clock)
            status = response.status
            response.close()
        except BackendError as e:
            way.rest(str(e))
            return
        if status >= 400:
            way.rest(f"its ping URL answers {status}")
        elif not way.usable():
            log.info("%s works again", way.name)
            way.rests_until = 0.0


def _mirror(options: Options) -> _Mirror:
    base = options.url("host")
    if base is None:
        raise UsageError(f"{options.kind} needs host", hint="http://host:port")
    way = _Way(
        f"mirror {base.base}",
        options.url("ping_url"),
        limit=int(options.number("failure_limit", _FAILURES)),
        headers=options.text_table("headers"),
    )
    options.ignore("auth_through", "health_check_interval")
    options.end()
    return _Mirror(base, way)


def _forward_proxy(text: str, option: str) -> ForwardProxy:
    scheme, _, rest = text.partition("://")
    credentials, _, host = rest.rpartition("@")
    return ForwardProxy(parse_url(f"{scheme}://{host}", option), credentials)
