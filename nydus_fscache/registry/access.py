"""Ways to registries: one client each, with the credentials, trust and scheme of that one.

Plain http is used when it was asked for, for registries on this machine, and, with
``insecure``, for a registry that does not speak TLS.  It is never used for another.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import field, replace

from nydus_fscache.config.http_options import HttpOptions
from nydus_fscache.errors import BackendError
from nydus_fscache.http.wire import Deadline
from nydus_fscache.registry.certificates import find_tls
from nydus_fscache.registry.client import RegistryClient
from nydus_fscache.registry.credentials import find_auth
from nydus_fscache.registry.image_name import ImageName
from nydus_fscache.registry.options import host_url
from nydus_fscache.registry.repository import Repository
from nydus_fscache.registry.scheme import find_scheme, speaks_tls
from rafs_v6.values import dataclass

log = logging.getLogger("converter")

_CONNECT_S = 30.0
_STALL_S = 60.0


@dataclass(frozen=True, slots=True)
class Trust:
    """How one side of a copy is asked.  ``auth``: base64 of user:password, empty to look it up."""

    insecure: bool = False
    plain_http: bool = False
    auth: str = field(default="", repr=False)


class Registries:
    """Owns the clients.  Thread-safe; a context manager."""

    def __init__(self, environ: Mapping[str, str] = os.environ, retries: int = 5) -> None:
        # That variable names no host, and a run may ask several: see ``Trust.auth``.
        self._environ = {k: v for k, v in environ.items() if k != "IMAGE_PULL_AUTH"}
        self._retries = retries
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, Trust], RegistryClient] = {}

    def __enter__(self) -> Registries:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def open(self, name: ImageName, trust: Trust) -> Repository:
        host = name.reference.host
        with self._lock:
            client = self._clients.get((host, trust))
            if client is None:
                client = self._clients[host, trust] = self._client(host, name, trust)
        return Repository(client, host, name.reference.repo)

    def _client(self, host: str, name: ImageName, trust: Trust) -> RegistryClient:
        http = HttpOptions(
            stall_s=_STALL_S, connect_s=_CONNECT_S, retries=self._retries,
            tls=find_tls(host, self._environ, skip_verify=trust.insecure),
        )  # fmt: skip
        http = replace(http, scheme=_scheme(host, name, http, trust))
        auth = trust.auth or find_auth(host, self._environ)
        return RegistryClient(host, http, auth=auth, environment_proxies=True)


def _scheme(host: str, name: ImageName, http: HttpOptions, trust: Trust) -> str:
    if trust.plain_http:
        return "http"
    deadline = time.monotonic() + _CONNECT_S
    if trust.insecure:
        try:
            tls = speaks_tls(host_url("https", host, "the registry"), http, Deadline(deadline, 10))
        except BackendError:
            tls = True  # out of reach: the first request says why
        if not tls:
            log.warning("try to pull with plain HTTP for %s", name)
        return "https" if tls else "http"
    return find_scheme(host, http, deadline=deadline)
