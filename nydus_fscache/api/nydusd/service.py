"""What the services of a front share: names in queries, bodies, errors, and what they need."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from nydus_fscache.api.nydusd.documents import Document
from nydus_fscache.api.nydusd.server import Query, Refused
from nydus_fscache.config import nydusd as configuration
from nydus_fscache.config.version_2 import as_version_2
from nydus_fscache.errors import FscacheError

Call = Callable[[Query, bytes | None], Any]
Routes = Mapping[tuple[str, str], Call]


class Engine(Protocol):
    """The node's daemon, as far as a front needs it; errors are ``FscacheError``."""

    def mount(self, request: Document) -> Document: ...
    def umount(self, mountpoint: str) -> Document: ...
    def bind(self, request: Document) -> Document: ...
    def unbind(self, fsid: str, domain: str) -> Document: ...
    def drop(self, name: str) -> Document: ...
    def status(self) -> Document: ...
    def login(self, request: Document) -> Document: ...


class Supervisor(Protocol):
    """Keeps bytes and a descriptor while no process of ours lives."""

    def send(self, path: Path, document: Document) -> None: ...
    def receive(self, path: Path) -> Document: ...


class Service(Protocol):
    """What an instance serves: mounts below a directory, or images of fscache."""

    def routes(self) -> Routes: ...

    def backends(self) -> Document | None:
        """``backend_collection`` of the daemon's document."""
        ...

    def configs(self, wanted: str) -> list[Document]:
        """The backends (version 2) of an id, with or without its slash; of all: ``/`` or empty."""
        ...

    def saved(self) -> list[Document]:
        """What a successor is given."""
        ...

    def restore(self, entries: list[Document]) -> None:
        """Raises ``TypeError``, ``KeyError`` or ``Refused``."""
        ...

    def end(self) -> None:
        """By SIGTERM, with no successor to come."""
        ...


def object_of(body: bytes | None) -> Document:
    try:
        document = json.loads(body or b"")
    except (ValueError, RecursionError) as e:
        raise Refused(400, f'ParseBody(Error("{e}"))') from e
    if not isinstance(document, dict):
        raise Refused(400, 'ParseBody(Error("not an object"))')
    return document


def backend_of(config: str) -> Document:
    """That of a configuration; empty where it is none."""
    try:
        return configuration.parse(config, "configuration").backend
    except FscacheError:
        return {}


def shown(config: str) -> Document | None:
    """A configuration as answers have it; None where it is none."""
    try:
        return as_version_2(configuration.parse(config, "configuration"))
    except FscacheError:
        return None


def told(error: Exception) -> str:
    hint = getattr(error, "hint", None)
    return f"{error}; {hint}" if hint else str(error)
