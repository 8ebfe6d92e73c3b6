"""What the services of a front share: names in queries, bodies, errors, and what they need."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from nydus_fscache.api.nydusd.documents import Document
from nydus_fscache.api.nydusd.server import Query, Refused
from nydus_fscache.errors import DaemonError, FscacheError

PATIENCE_S = 20.0  # the snapshotter waits 30 s for an answer
PAUSE_S = 0.5
_Answer = TypeVar("_Answer")
Call = Callable[[Query, bytes | None], Any]
Routes = Mapping[tuple[str, str], Call]


class Engine(Protocol):
    """The node's daemon, as far as a front needs it; errors are ``FscacheError``."""

    def mount(self, request: Document) -> Document: ...
    def prefetch(self, request: Document) -> Document: ...
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


def patiently(
    what: str,
    call: Callable[[], _Answer],
    log: logging.Logger,
    passing: tuple[type[FscacheError], ...] = (DaemonError,),
) -> _Answer:
    """A call of the engine that may be made twice.  Its service can be killed in the middle of it,
    and another one starts at once; the snapshotter forgets that a call failed, so better try again
    here.  ``passing``: errors that may be over soon."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call()
        except passing as e:
            if time.monotonic() > deadline:
                raise
            log.warning("%s: %s; trying again", what, e)
            time.sleep(PAUSE_S)


def object_of(body: bytes | None) -> Document:
    try:
        document = json.loads(body or b"")
    except json.JSONDecodeError as e:
        raise _unparsed(e.msg, e.lineno, e.colno) from e
    except (ValueError, RecursionError) as e:
        raise _unparsed(str(e), 1, 1) from e
    if not isinstance(document, dict):
        raise _unparsed("not an object", *_end_of(body))
    return document


def text_of(document: Document, name: str, body: bytes | None) -> str:
    """A member that must be there and be text; ``body`` is where it was read from."""
    value = document.get(name)
    if name not in document:
        raise _unparsed(f"missing field `{name}`", *_end_of(body))
    if not isinstance(value, str):
        raise _unparsed(f"invalid type of `{name}`, expected a string", *_end_of(body))
    return value


def _end_of(body: bytes | None) -> tuple[int, int]:
    """Line and column of the last byte of a document."""
    lines = (body or b"").rstrip().split(b"\n")
    return len(lines), len(lines[-1])


def _unparsed(why: str, line: int, column: int) -> Refused:
    return Refused(400, f'ParseBody(Error("{why}", line: {line}, column: {column}))')


def named(query: Query, name: str) -> str:
    """A parameter that must be there."""
    if name not in query:
        raise Refused(400, f"QueryString(\"'{name}' should be specified in query string\")")
    return query[name]


def no_counter(call: str) -> Refused:
    """``call``: the name that nydusd's errors of the call begin with."""
    return Refused(404, f"{call}(Metrics(Stats(NoCounter)))")


def unsupported(call: str) -> Refused:
    """nydusd knows all calls in all its modes, and answers so to those of another one."""
    return Refused(501, f"{call}(DaemonAbnormal(Unsupported))")


def backend_of(config: str) -> Document:
    """That of a configuration; empty where it is none."""
    from nydus_fscache.config import nydusd as configuration  # noqa: PLC0415 - half a MiB

    try:
        return configuration.parse(config, "configuration").backend
    except FscacheError:
        return {}


def shown(config: str) -> Document | None:
    """A configuration as answers have it; None where it is none."""
    from nydus_fscache.config import nydusd as configuration  # noqa: PLC0415 - likewise
    from nydus_fscache.config.version_2 import as_version_2  # noqa: PLC0415

    try:
        return as_version_2(configuration.parse(config, "configuration"))
    except FscacheError:
        return None


def told(error: Exception) -> str:
    hint = getattr(error, "hint", None)
    return f"{error}; {hint}" if hint else str(error)
