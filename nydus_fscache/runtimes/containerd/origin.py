"""The registries that have an image: itself, and what ``hosts.toml`` puts before it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import field, replace
from pathlib import Path
from typing import TypeVar

from nydus_fscache.config.http_options import HttpOptions, Tls
from nydus_fscache.errors import BackendError
from nydus_fscache.registry.client import RegistryClient
from nydus_fscache.registry.credentials import find_auth
from nydus_fscache.registry.image_name import ImageName
from nydus_fscache.registry.manifest import Descriptor
from nydus_fscache.registry.repository import Repository
from nydus_fscache.registry.scheme import find_scheme
from nydus_fscache.registry.store import PIECE, Document, read_blob
from nydus_fscache.runtimes.containerd.hosts import endpoints
from rafs_v6.values import dataclass

log = logging.getLogger("rpull")

_STALL_S = 60.0
_CONNECT_S = 30.0

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Access:
    """How the registry is asked.  ``auth``: base64 of user:password, empty to look it up."""

    hosts: Path | None = None
    tls: Tls = field(default_factory=Tls)
    plain_http: bool = False
    auth: str = field(default="", repr=False)
    connect_s: float = _CONNECT_S


@dataclass(frozen=True)
class Origin:
    """In the order in which they are asked; ``resolvers`` may say what a tag means."""

    name: ImageName
    resolvers: tuple[Repository, ...]
    places: tuple[Repository, ...]

    def manifest(self, name: str) -> Document:
        by_digest = ":" in name
        return self._first(
            self.places if by_digest else self.resolvers, lambda place: place.manifest(name)
        )

    def blob(self, target: Descriptor) -> bytes:
        """A configuration: whole."""
        return self._first(self.places, lambda place: read_blob(place, target))

    def pieces(self, target: Descriptor) -> Iterator[bytes]:
        """A layer, as it comes; not verified.  The first place that has it."""
        place = self._first(self.places, lambda place: _having(place, target))
        stream = place.open_blob(target.digest, target.size)
        buf = memoryview(bytearray(PIECE))
        try:
            while count := stream.readinto(buf):
                yield bytes(buf[:count])
        finally:
            stream.close()

    def _first(self, places: tuple[Repository, ...], ask: Callable[[Repository], _T]) -> _T:
        for place in places[:-1]:
            try:
                return ask(place)
            except BackendError as e:
                log.warning("%s: %s; the next one is asked", place.host, e)
        return ask(places[-1])

    def close(self) -> None:
        for place in self.places:
            place.client.close()


def open_origin(name: ImageName, access: Access) -> Origin:
    """Asks nobody yet, but registries on this machine whether they speak TLS."""
    own = name.reference.host
    resolvers, places = [], []
    for one in endpoints(access.hosts, name.domain, own, access.tls):
        http = HttpOptions(stall_s=_STALL_S, connect_s=access.connect_s, tls=one.tls)
        scheme = one.scheme or ("http" if access.plain_http else "")
        if not scheme:
            scheme = find_scheme(one.host, http, deadline=time.monotonic() + access.connect_s)
        auth = access.auth if access.auth and one.host == own else find_auth(one.host)
        client = RegistryClient(
            one.host, replace(http, scheme=scheme), auth=auth, environment_proxies=True
        )
        places.append(Repository(client, one.host, name.reference.repo))
        if one.resolves:
            resolvers.append(places[-1])
    return Origin(name, tuple(resolvers or places[-1:]), tuple(places))


def _having(place: Repository, target: Descriptor) -> Repository:
    if place.has_blob(target.digest) is None:
        raise BackendError(f"{place.host}/{place.repo} has no {target.digest}", status=404)
    return place
