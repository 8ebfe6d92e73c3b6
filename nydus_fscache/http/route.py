"""The route of a request: a mirror, a proxy, or straight to the origin.

Mirrors are tried in their order, the origin last; each route that fails rests for a
while, and a health check (``ping_url``) brings it back sooner.  Credentials and
signatures of the origin are never sent to a mirror: a request that may be mirrored
carries none, and ``authorise`` adds them for the origin only.
A route whose bytes turned out to be wrong is not used for that blob again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import field

from nydus_fscache.config.http_options import HttpOptions, MirrorOptions
from nydus_fscache.config.url import Url
from nydus_fscache.errors import BackendError
from nydus_fscache.http.dial import ForwardProxy
from nydus_fscache.http.pool import Pool, PooledResponse
from nydus_fscache.http.wire import Deadline, Request
from rafs_v6.values import dataclass

log = logging.getLogger("backend")

_FAILURES = 3  # in a row, before a proxy rests
_REST_S = 30.0
_GOOD = (200, 206)


@dataclass(frozen=True, slots=True)
class RequestTemplate:
    """A request that has no destination yet."""

    method: str
    headers: dict[str, str]
    deadline: Deadline
    prefetch: bool = False


@dataclass(slots=True)
class Route:
    """``ping`` is asked by health checks.  Counters are racy by design: they only steer."""

    name: str
    ping: Url | None
    failures: int = 0
    rests_until: float = 0.0
    limit: int = _FAILURES
    headers: dict[str, str] = field(default_factory=dict)

    def usable(self) -> bool:
        return time.monotonic() >= self.rests_until

    def report(self, why: str) -> None:
        """How a body went that came on this route: empty when it came whole."""
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
    """Where it is, and how it is reached."""

    base: Url
    route: Route


class Routes:
    """Owns the health checks, which end with the event ``closing``; thread-safe."""

    def __init__(self, pool: Pool, options: HttpOptions, closing: threading.Event) -> None:
        self._pool = pool
        self._connect_s = options.connect_s
        self._interval_s = options.check_interval_s
        self._pause_s = options.check_pause_s
        self._closing = closing
        self._corrupt: dict[str, float] = {}  # blob id -> since when
        self._last_used = time.monotonic()
        self._fallback = self._use_http = False
        self._proxy: ForwardProxy | None = None
        self._proxy_route: Route | None = None
        if (proxy := options.proxy) is not None:
            self._fallback, self._use_http = proxy.fallback, proxy.use_http
            self._proxy = ForwardProxy(proxy.url, proxy.credentials)
            self._proxy_route = Route(f"proxy {proxy.url.base}", proxy.ping)
        self._mirrors = [_mirror(mirror) for mirror in options.mirrors]
        routes = [mirror.route for mirror in self._mirrors]
        if self._proxy_route is not None:
            routes.append(self._proxy_route)
        self._pinged = [route for route in routes if route.ping is not None]
        if self._pinged:
            threading.Thread(target=self._check_health, name="ping", daemon=True).start()

    def send(
        self,
        url: Url,
        template: RequestTemplate,
        *,
        authorise: Callable[[], dict[str, str]],
        blob_id: str,
    ) -> PooledResponse:
        """The first useful answer of a mirror, else whatever the origin answers."""
        self._last_used = time.monotonic()
        for mirror in self._usable_mirrors(blob_id):
            response = self._try_mirror(mirror, url, template)
            if response is not None:
                return response
        return self.send_to(url, template, authorise(), blob_id=blob_id)

    def send_to(
        self, url: Url, template: RequestTemplate, extra: dict[str, str], *, blob_id: str
    ) -> PooledResponse:
        """To this host and no other, through the proxy while that works."""
        request = Request(template.method, url, {**template.headers, **extra})
        proxy, route = self._proxy, self._proxy_route
        if proxy is None or route is None or (self._fallback and blob_id in self._corrupt):
            return self._pool.exchange(request, template.deadline)
        if not route.usable() and self._fallback:
            return self._pool.exchange(request, template.deadline)
        if not route.usable() and route.ping is not None:  # else only a request can tell
            raise BackendError(
                f"{route.name} does not work", hint="or set proxy.fallback", retryable=True
            )
        try:
            proxied = self._proxied(request, template)
            response = self._pool.exchange(proxied, template.deadline, proxy)
        except BackendError as e:
            route.failed(str(e))
            if not self._fallback:
                raise
        else:
            refused = response.headers.get("x-dragonfly-error-type") == "proxy"
            if response.status < 500 and not refused:
                response.report = route.report
                return response
            route.failed(f"it answers {response.status}")
            if not self._fallback:
                return response
            response.close()
        return self._pool.exchange(request, template.deadline)

    def _proxied(self, request: Request, template: RequestTemplate) -> Request:
        headers = {
            **request.headers,
            "X-Dragonfly-Use-P2P": "true",
            "X-Dragonfly-Priority": "3" if template.prefetch else "6",
        }
        if template.prefetch:
            headers["X-Dragonfly-Prefetch"] = "true"
        url = request.url.as_http() if self._use_http else request.url
        return Request(request.method, url, headers)

    def _usable_mirrors(self, blob_id: str) -> Iterator[_Mirror]:
        if blob_id and blob_id not in self._corrupt:
            yield from (m for m in self._mirrors if m.route.usable())

    def _try_mirror(
        self, mirror: _Mirror, url: Url, template: RequestTemplate
    ) -> PooledResponse | None:
        there = mirror.base.with_target(mirror.base.target.rstrip("/") + url.target)
        request = Request(template.method, there, {**template.headers, **mirror.route.headers})
        # a mirror that hangs must leave time for the others and for the origin
        half = time.monotonic() + template.deadline.left() / 2
        deadline = Deadline(half, template.deadline.stall_s)
        try:
            response = self._pool.exchange(request, deadline)
        except BackendError as e:
            mirror.route.failed(str(e))
            return None
        if response.status in _GOOD:
            response.report = mirror.route.report
            return response
        if response.status != 404:  # a mirror need not have everything
            mirror.route.failed(f"it answers {response.status}")
        response.close()
        return None

    def mark_corrupt(self, blob_id: str, asked_at: float) -> bool:
        """The origin only for this blob from now on; see ``Backend.mark_corrupt``."""
        if not (self._mirrors or (self._proxy and self._fallback)):
            return False
        return asked_at <= self._corrupt.setdefault(blob_id, time.monotonic())

    def _check_health(self) -> None:
        while not self._closing.wait(self._interval_s):
            if self._pause_s and time.monotonic() - self._last_used > self._pause_s:
                continue  # nobody reads: do not wake machines up
            for route in self._pinged:
                self._ping(route)

    def _ping(self, route: Route) -> None:
        assert route.ping is not None
        deadline = Deadline(time.monotonic() + self._connect_s, self._connect_s)
        try:
            response = self._pool.exchange(Request("GET", route.ping), deadline)
            status = response.status
            response.close()
        except BackendError as e:
            route.rest(str(e))
            return
        if status >= 400:
            route.rest(f"its ping URL answers {status}")
        elif not route.usable():
            log.info("%s works again", route.name)
            route.rests_until = 0.0


def _mirror(options: MirrorOptions) -> _Mirror:
    route = Route(
        f"mirror {options.host.base}",
        options.ping,
        limit=options.failure_limit,
        headers=options.headers,
    )
    return _Mirror(options.host, route)
