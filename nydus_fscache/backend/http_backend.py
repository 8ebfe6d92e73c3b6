"""What all HTTP backends share: options, pool, retries, ranges and sizes.

A backend on top says where a blob is and how a request is authorised
(``fetch``); the rest is here.  Headers from the environment go to the
configured host, never to where it redirects.
"""

from __future__ import annotations

import os
import re
import threading
from abc import abstractmethod

from nydus_fscache import __version__
from nydus_fscache.backend.base import Backend, RangeStream, is_safe_name
from nydus_fscache.config.options import Options
from nydus_fscache.errors import BackendError, UsageError
from nydus_fscache.http.dial import Tls
from nydus_fscache.http.pool import Pool, PooledResponse
from nydus_fscache.http.ranges import ResumingRange
from nydus_fscache.http.retry import RETRIES, Patience, StatusError
from nydus_fscache.http.route import Ask, Routes
from nydus_fscache.http.wire import Clock

USER_AGENT = f"nydus-fscache/{__version__}"
_PREFETCH_RETRIES = 1
_NO_TIMEOUT_S = 24 * 3600.0  # timeout 0 means none; the deadline of the request still ends it
_ENV_PREFIX = "NYDUS_HEADER_"


def environment_headers() -> dict[str, str]:
    """``NYDUS_HEADER_<Name>=<value>``: headers for every request to the configured host."""
    headers = {}
    for key, value in os.environ.items():
        name = key.removeprefix(_ENV_PREFIX)
        if name == key:
            continue
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or not re.fullmatch(r"[\x20-\x7e]*", value):
            raise UsageError(f"{key} is no valid header", hint="letters, digits, - and _")
        headers[name] = value
    return headers


def make_tls(options: Options) -> Tls:
    return Tls(
        skip_verify=options.flag("skip_verify"),
        ca_cert_files=tuple(options.texts("ca_cert_files")),
        client_cert_file=options.text("client_cert_file", ""),
        client_key_file=options.text("client_key_file", ""),
    )


class HttpBackend(Backend):
    """Takes the common options; a subclass takes its own first, and calls ``end`` last."""

    def __init__(self, options: Options, *, scheme: bool = True) -> None:
        self.scheme = options.text("scheme", "https") if scheme else "https"
        if self.scheme not in ("http", "https"):
            raise UsageError(f"{options.kind}.scheme is {self.scheme!r}", hint="http or https")
        self._stall_s = options.number("timeout", 5) or _NO_TIMEOUT_S
        connect_s = options.number("connect_timeout", 5) or _NO_TIMEOUT_S
        self._retries = int(options.number("retry_limit", 0)) or RETRIES
        self._closing = threading.Event()
        self._sizes: dict[str, int] = {}
        self.headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity"}
        self.own_headers = environment_headers()  # for the configured host only
        self.pool = Pool(make_tls(options), connect_s)
        self.routes = Routes(self.pool, options, connect_s, self._closing)
        options.end()

    @abstractmethod
    def fetch(self, blob_id: str, ask: Ask) -> PooledResponse:
        """Send ``ask`` for the blob, authorised; any answer that is not a redirect."""

    def size(self, blob_id: str, *, deadline: float) -> int:
        known = self._sizes.get(blob_id)
        if known is not None:
            return known
        clock, patience = self.begin(deadline)
        self._check_name(blob_id)
        while True:
            try:
                return self._head(blob_id, clock)
            except BackendError as e:
                patience.failed(e)

    def _head(self, blob_id: str, clock: Clock) -> int:
        response = self.fetch(blob_id, Ask("HEAD", dict(self.headers), clock))
        try:
            if response.status != 200:
                raise StatusError(f"blob {blob_id}", response)
            return response.declared_length()
        finally:
            response.close()

    def open_range(
        self, blob_id: str, off: int, length: int, *, deadline: float, prefetch: bool
    ) -> RangeStream:
        clock, patience = self.begin(deadline, prefetch)
        self._check_name(blob_id)

        def ask_range(off: int, length: int) -> PooledResponse:
            headers = {**self.headers, "Range": f"bytes={off}-{off + length - 1}"}
            return self.fetch(blob_id, Ask("GET", headers, clock, prefetch))

        stream = ResumingRange(ask_range, off, length, patience, f"blob {blob_id}")
        if stream.total is not None:
            self._sizes[blob_id] = stream.total  # saves the round trip of a HEAD
        return stream

    def begin(self, deadline: float, prefetch: bool = False) -> tuple[Clock, Patience]:
        """For one read: its waits and its attempts."""
        clock = Clock(deadline, self._stall_s)
        retries = _PREFETCH_RETRIES if prefetch else self._retries
        return clock, Patience(clock, retries, self._closing)

    def _check_name(self, blob_id: str) -> None:
        if not is_safe_name(blob_id):
            raise BackendError(
                f"blob id {blob_id!r} cannot be part of a URL", hint="hostile image?"
            )

    def distrust(self, blob_id: str, asked_at: float) -> bool:
        return self.routes.distrust(blob_id, asked_at)

    def close(self) -> None:
        self._closing.set()
        self.pool.close()
