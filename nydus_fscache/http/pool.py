"""Connections by destination: kept alive, used again, bounded in number.

A connection that was idle may have been closed by its server at any time, so a
failure before the first byte of its answer is repeated once on a new one (all
our requests are safe to repeat).  Nothing else is retried here.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable

from nydus_fscache.config.http_options import Tls
from nydus_fscache.errors import BackendError
from nydus_fscache.http.dial import Dialer, ForwardProxy
from nydus_fscache.http.wire import Connection, Deadline, Request, Response

_IDLE_S = 55.0  # most servers and balancers close after 60
_MAX_IDLE = 16
_PARALLEL = 32  # exchanges at once of one pool


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
        self._dialer = Dialer(tls, connect_timeout_s)
        self._lock = threading.Lock()
        self._idle: dict[_Key, list[Connection]] = {}
        self._slots = threading.BoundedSemaphore(_PARALLEL)
        self._closed = False

    def exchange(
        self, request: Request, deadline: Deadline, proxy: ForwardProxy | None = None
    ) -> PooledResponse:
        """Send the request; the head of the answer has arrived when this returns."""
        if not self._slots.acquire(timeout=max(0.0, deadline.left())):
            raise BackendError(f"{request.url.base}: too many requests at once", retryable=True)
        try:
            return self._exchange(request, deadline, proxy)
        except BaseException:
            self._slots.release()
            raise

    def _exchange(
        self, request: Request, deadline: Deadline, proxy: ForwardProxy | None
    ) -> PooledResponse:
        key = (request.url.origin, proxy.url.origin if proxy else None)
        if proxy and request.url.scheme == "http":
            headers = {**request.headers, **proxy.headers()}
            request = Request(request.method, request.url, headers, request.body, absolute=True)
        connection = self._idle_connection(key)
        if connection is not None:
            try:
                return self._on(connection, key, request, deadline)
            except BackendError as e:
                if not e.retryable or connection.timed_out:
                    raise
        return self._on(self._dialer.connect(request.url, proxy, deadline), key, request, deadline)

    def _on(
        self, connection: Connection, key: _Key, request: Request, deadline: Deadline
    ) -> PooledResponse:
        try:
            return PooledResponse(self, key, connection.exchange(request, deadline))
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

    def close(self) -> None:
        with self._lock:
            self._closed = True
            left = [c for idle in self._idle.values() for c in idle]
            self._idle.clear()
        for connection in left:
            connection.close()
