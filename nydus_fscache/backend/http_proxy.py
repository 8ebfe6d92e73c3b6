"""``http-proxy``: a server that has blobs under a path, over TCP or a unix socket.

Unlike the original, which always asks a unix socket for ``/``, the path and the
blob id are part of the request there too: one socket can serve many blobs.
"""

from __future__ import annotations

import os
from urllib.parse import quote

from nydus_fscache.backend.http_backend import HttpBackend
from nydus_fscache.config.http_options import take_http_options
from nydus_fscache.config.options import Options
from nydus_fscache.config.url import Url, parse_url
from nydus_fscache.errors import UsageError
from nydus_fscache.http.pool import PooledResponse
from nydus_fscache.http.route import RequestTemplate

_AS_IS = "/-._~!$&'()*+,;=:@%?"  # the rest is sent percent-encoded


class HttpProxy(HttpBackend):
    """Config: ``addr`` (http://…, https://…, or the absolute path of a socket), ``path``."""

    name = "http-proxy"

    def __init__(self, options: Options) -> None:
        addr = options.text("addr")
        path = "/" + quote(options.text("path", "").strip("/"), safe=_AS_IS)
        http = take_http_options(options, scheme=False)
        options.end()
        super().__init__(http)
        if addr.startswith(("http://", "https://")):
            base = parse_url(addr, "http-proxy.addr")
        elif addr.startswith("/") and os.path.exists(addr):
            base = Url("unix", addr, 0, "/")
        else:
            raise UsageError(
                f"http-proxy.addr is {addr!r}",
                hint="http://host:port, https://host:port, or the path of a socket that exists",
            )
        self._base = base
        self.link = base.authority
        self._folder = (base.target.rstrip("/") + path).rstrip("/") + "/"

    def fetch(self, blob_id: str, template: RequestTemplate) -> PooledResponse:
        base = self._base
        url = Url(base.scheme, base.host, base.port, self._folder + blob_id)
        return self.routes.send(url, template, authorise=lambda: self.own_headers, blob_id=blob_id)
