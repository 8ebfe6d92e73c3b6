"""http or https: for registries on this machine it is found out, as docker and containerd do.

Any other host is asked over https unless the configuration or the command line says
otherwise: nothing falls back to http.
"""

from __future__ import annotations

from dataclasses import replace

from nydus_fscache.config.http_options import HttpOptions
from nydus_fscache.config.url import Url
from nydus_fscache.errors import BackendError
from nydus_fscache.http.dial import Dialer
from nydus_fscache.http.wire import Deadline
from nydus_fscache.registry.options import host_url
from nydus_fscache.registry.reference import is_loopback


def find_scheme(host: str, http: HttpOptions, *, deadline: float) -> str:
    """``host`` may have a port.  One handshake, on the loopback only."""
    if not is_loopback(host):
        return "https"
    url = host_url("https", host, "the registry's host")
    try:
        tls = speaks_tls(url, http, Deadline(deadline, http.stall_s))
    except BackendError:
        tls = False
    return "https" if tls else "http"


def speaks_tls(url: Url, http: HttpOptions, deadline: Deadline) -> bool:
    """One handshake.  ``BackendError`` when nobody answers; any certificate will do, as the
    requests that follow look at it."""
    dialer = Dialer(replace(http.tls, skip_verify=True), http.connect_s)
    try:
        dialer.connect(url, None, deadline).close()
    except BackendError as e:
        if "TLS" in str(e):
            return False
        raise
    return True
