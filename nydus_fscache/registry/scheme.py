"""http or https: for registries on this machine it is found out, as docker and containerd do.

Any other host is asked over https unless the configuration or the command line says
otherwise: nothing falls back to http.
"""

from __future__ import annotations

from dataclasses import replace

from nydus_fscache.config.http_options import HttpOptions
from nydus_fscache.errors import BackendError
from nydus_fscache.http.dial import Dialer
from nydus_fscache.http.wire import Deadline
from nydus_fscache.registry.options import host_url
from nydus_fscache.registry.reference import is_loopback


def find_scheme(host: str, http: HttpOptions, *, deadline: float) -> str:
    """``host`` may have a port.  One handshake, on the loopback only."""
    url = host_url("https", host, "the registry's host")
    if not is_loopback(host):
        return "https"
    # whether the certificate is good is looked at by the requests that follow
    dialer = Dialer(replace(http.tls, skip_verify=True), http.connect_s)
    try:
        dialer.connect(url, None, Deadline(deadline, http.stall_s)).close()
    except BackendError:
        return "http"
    return "https"
