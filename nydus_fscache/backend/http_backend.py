"""The common part of all HTTP backends: pool, retries, ranges and sizes.

A backend on top says where a blob is and how a request is authorised
(``fetch``); the rest is here.  Headers from the environment go to the
configured host, never to where it redirects.
"""

from __future__ import annotations

import threading
from abc import abstractmethod

from nydus_fscache import __version__
from nydus_fscache.backend.base import Backend, RangeStream, is_safe_name
from nydus_fscache.config.http_options import HttpOptions, environment_headers
from nydus_fscache.errors import BackendError
from nydus_fscache.http.answer import StatusError
from nydus_fscache.http.pool import Pool, PooledResponse
from nydus_fscache.http.ranges import ResumingRange
from nydus_fscache.http.retry import RetryPolicy
from nydus_fscache.http.route import RequestTemplate, Routes
from nydus_fscache.http.wire import Deadline

USER_AGENT = f"nydus-fscache/{__version__}"
_PREFETCH_RETRIES = 1


class HttpBackend(Backend):
    """``http``: the common options.  A subclass says where blobs are, by ``fetch``."""

    def __init__(self, http: HttpOptions) -> None:
        self._stall_s = http.stall_s
        self._retries = http.retries
        self._closing = threading.Event()
        self._sizes: dict[str, int] = {}
        self.headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
        self.own_headers = environment_headers()  # for the configured host only
        self.pool = Pool(http.tls, http.connect_s)
        self.routes = Routes(self.pool, http, self._closing)

    @abstractmethod
    def fetch(self, blob_id: str, template: RequestTemplate) -> PooledResponse:
        """Send ``template`` for the blob, authorised; any answer that is not a redirect."""

    def size(self, blob_id: str, *, deadline: float) -> int:
        known = self._sizes.get(blob_id)
        if known is not None:
            return known
        limit, policy = self._begin(deadline)
        self._check_name(blob_id)
        while True:
            try:
                return self._head(blob_id, limit)
            except BackendError as e:
                policy.failed(e)

    def _head(self, blob_id: str, deadline: Deadline) -> int:
        response = self.fetch(blob_id, RequestTemplate("HEAD", dict(self.headers), deadline))
        try:
            if response.status != 200:
                raise StatusError(f"blob {blob_id}", response)
            return response.declared_length()
        finally:
            response.close()

    def open_range(
        self, blob_id: str, off: int, length: int, *, deadline: float, prefetch: bool
    ) -> RangeStream:
        limit, policy = self._begin(deadline, prefetch)
        self._check_name(blob_id)

        def ask_range(off: int, length: int) -> PooledResponse:
            headers = {**self.headers, "Range": f"bytes={off}-{off + length - 1}"}
            return self.fetch(blob_id, RequestTemplate("GET", headers, limit, prefetch))

        stream = ResumingRange(ask_range, off, length, policy, f"blob {blob_id}")
        if stream.total is not None:
            self._sizes[blob_id] = stream.total  # saves the round trip of a HEAD
        return stream

    def _begin(self, at: float, prefetch: bool = False) -> tuple[Deadline, RetryPolicy]:
        """For one read: its waits and its attempts."""
        deadline = Deadline(at, self._stall_s)
        retries = _PREFETCH_RETRIES if prefetch else self._retries
        return deadline, RetryPolicy(deadline, retries, self._closing)

    def _check_name(self, blob_id: str) -> None:
        if not is_safe_name(blob_id):
            raise BackendError(
                f"blob id {blob_id!r} cannot be part of a URL", hint="hostile image?"
            )

    def mark_corrupt(self, blob_id: str, asked_at: float) -> bool:
        return self.routes.mark_corrupt(blob_id, asked_at)

    def close(self) -> None:
        self._closing.set()
        self.pool.close()
