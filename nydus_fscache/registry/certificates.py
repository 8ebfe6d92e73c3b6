"""Certificates for a registry, from where docker and podman keep them.

Below each directory in ``_PLACES``, one named ``HOST`` or ``HOST:PORT`` holds authorities
(``*.crt``) and our own certificate (``*.cert`` with its ``*.key``).  They are added to the
system's authorities, for that registry alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from nydus_fscache.config.http_options import Tls
from nydus_fscache.errors import UsageError
from nydus_fscache.registry.reference import HUB_HOST, HUB_NAMES, canonical_host

_PLACES = ("/etc/docker/certs.d", "/etc/containers/certs.d")
_OWN_PLACES = (".config/docker/certs.d", ".config/containers/certs.d")


def find_tls(
    host: str, environ: Mapping[str, str] = os.environ, *, skip_verify: bool = False
) -> Tls:
    """``UsageError`` for a certificate of ours without its key."""
    authorities: list[str] = []
    own: tuple[str, str] = ("", "")
    for directory in _directories(canonical_host(host), environ):
        authorities += map(str, sorted(directory.glob("*.crt")))
        for certificate in sorted(directory.glob("*.cert")):
            key = certificate.with_suffix(".key")
            if not key.is_file():
                raise UsageError(f"{certificate} is without its key", hint=f"put it at {key}")
            own = own if own[0] else (str(certificate), str(key))
    return Tls(skip_verify, tuple(authorities), *own)


def _directories(host: str, environ: Mapping[str, str]) -> Iterator[Path]:
    names = HUB_NAMES if host == HUB_HOST else (host,)
    home = environ.get("HOME", "")
    places = [*_PLACES, *(os.path.join(home, place) for place in _OWN_PLACES if home)]
    for place in places:
        for name in names:
            for spelling in (name, f"{name}:443"):
                directory = Path(place, spelling)
                if directory.is_dir():
                    yield directory
