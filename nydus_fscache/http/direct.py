"""Small calls over connections of our own (``http.pool``): neither a proxy nor a large body.

Nearly all of them are: tokens, manifests, whole blobs.  ``requests`` costs 0.1 s and 11 MB before
the first one, and several times the CPU for each byte.
"""

from __future__ import annotations

from nydus_fscache.config.http_options import HttpOptions
from nydus_fscache.config.url import Url
from nydus_fscache.http.call import Call, SessionAnswer
from nydus_fscache.http.pool import Pool, PooledResponse
from nydus_fscache.http.wire import Deadline, Request

_LARGE = 64 * 1024  # a server that refuses a larger body may close before it took it


class _Answer(SessionAnswer):
    def __init__(self, response: PooledResponse, url: Url) -> None:
        super().__init__(url, response.status, response.headers)
        self._response = response

    def readinto(self, buf: memoryview) -> int:
        return self._response.readinto(buf)

    def close(self) -> None:
        self._response.close()


class Direct:
    """Thread-safe."""

    def __init__(self, options: HttpOptions) -> None:
        self._pool = Pool(options.tls, options.connect_s)  # wrong files are told at once

    def takes(self, call: Call) -> bool:
        return isinstance(call.body, bytes) and len(call.body) <= _LARGE

    def send(self, call: Call, deadline: Deadline) -> SessionAnswer:
        """One exchange, whatever the server answers."""
        assert isinstance(call.body, bytes)
        headers = {"Accept-Encoding": "identity", **call.headers, **call.own_headers}
        request = Request(call.method, call.url, headers, call.body)
        return _Answer(self._pool.exchange(request, deadline), call.url)

    def close(self) -> None:
        self._pool.close()
