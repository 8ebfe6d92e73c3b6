"""One nydusd as its callers see it: a state machine, its calls, its service.

It serves nobody's data: the node's daemon does (``service.Engine``).  Sources of the behaviour:
docs/nydusd.md.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

from nydus_fscache.api.nydusd import documents
from nydus_fscache.api.nydusd.documents import Document, ErrorRing
from nydus_fscache.api.nydusd.server import Query, Refused
from nydus_fscache.api.nydusd.service import (
    Call,
    Engine,
    Service,
    Supervisor,
    object_of,
    text_of,
)
from nydus_fscache.errors import FscacheError
from rafs_v6.values import dataclass

LEVELS = ("off", "error", "warn", "info", "debug", "trace")
HOT_KEYS = ("registry_auth", "proxy_url", "dragonfly_scheduler_endpoint")


class State(Enum):
    INIT = "INIT"
    READY = "READY"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"


@dataclass(frozen=True, slots=True)
class Identity:
    """What the command line said."""

    instance: str | None = None
    supervisor: Path | None = None


class Front:
    """Thread-safe: ``answer`` is called by the server's threads."""

    def __init__(
        self,
        identity: Identity,
        service: Service,
        engine: Engine,
        supervisor: Supervisor,
        errors: ErrorRing,
        state: State,
        log: logging.Logger,
        on_exit: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_exit``: called when ``exit_asked`` is set."""
        self._log = log
        self._on_exit = on_exit
        self._identity = identity
        self._service = service
        self._engine = engine
        self._supervisor = supervisor
        self._state = state
        self._lock = threading.RLock()
        self._taking_over = threading.Lock()  # INIT is answered meanwhile
        self._hot: dict[str, str] = {}
        self.exit_asked = threading.Event()
        self._calls: dict[tuple[str, str], Call] = {
            ("GET", "/api/v1/daemon"): lambda *_: self._document(service.backends()),
            ("PUT", "/api/v1/daemon"): self._configure,
            ("GET", "/api/v1/daemon/events"): lambda *_: errors.document(),
            ("PUT", "/api/v1/daemon/start"): self._start,
            ("PUT", "/api/v1/daemon/exit"): self._exit,
            ("PUT", "/api/v1/daemon/fuse/sendfd"): self._send_state,
            ("PUT", "/api/v1/daemon/fuse/takeover"): self._take_over,
            ("GET", "/api/v1/config"): self._hot_config,
            ("PUT", "/api/v1/config"): self._set_hot_config,
            ("GET", "/api/v2/daemon"): lambda *_: self._document(None),
            ("PUT", "/api/v2/daemon"): self._configure,
            **service.routes(),
        }
        self._paths = {path for _, path in self._calls}

    @property
    def state(self) -> State:
        return self._state

    def answer(self, method: str, path: str, query: Query, body: bytes | None) -> Any:
        call = self._calls.get((method, path))
        if call is None:
            if path in self._paths:
                raise Refused(400, "BadRequest")
            raise Refused(404, "NoRoute")
        takes_body = method in ("PUT", "POST") and path.endswith(
            ("/daemon", "/mount", "/config", "/blobs")
        )
        if takes_body != (body is not None):
            raise Refused(400, "BadRequest")
        return call(query, body)

    def _document(self, backends: Document | None) -> Document:
        identity = self._identity
        supervisor = None if identity.supervisor is None else str(identity.supervisor)
        return documents.daemon_info(identity.instance, supervisor, self._state.value, backends)

    def _configure(self, _: Query, body: bytes | None) -> None:
        level = text_of(object_of(body), "log_level", body).lower()
        if level not in LEVELS:
            raise Refused(500, f'Configure(InvalidArguments("log level {level}"))')
        names = {"off": logging.CRITICAL + 1, "trace": logging.DEBUG, "warn": logging.WARNING}
        self._log.setLevel(names.get(level, level.upper()))

    def _start(self, *_: Any) -> None:
        with self._lock:
            if self._state is not State.READY:
                raise _unexpected("Configure", "Start")
            self._state = State.RUNNING

    def _exit(self, *_: Any) -> None:
        """The successor has the mounts: they stay."""
        with self._lock:
            self._state = State.STOPPED
        self.exit_asked.set()
        self._on_exit()

    # -- state for a successor ---------------------------------------------------------------

    def _send_state(self, *_: Any) -> None:
        path = self._identity.supervisor
        if path is None:
            return
        try:
            self._supervisor.send(path, {"entries": self._service.saved()})
        except FscacheError as e:
            raise Refused(500, f'Upgrade(DaemonAbnormal(Other("{e}")))') from e

    def _take_over(self, *_: Any) -> None:
        path = self._identity.supervisor
        with self._taking_over:
            if self._state is not State.INIT:
                raise _unexpected("Upgrade", "Takeover")
            if path is None:
                raise Refused(500, 'Upgrade(DaemonAbnormal(Other("no supervisor")))')
            try:
                self._service.restore(self._supervisor.receive(path)["entries"])
            except (FscacheError, TypeError, KeyError) as e:
                raise Refused(500, f'Upgrade(DaemonAbnormal(Other("{e}")))') from e
            with self._lock:
                if self._state is State.INIT:  # not told to exit meanwhile
                    self._state = State.READY

    # -- hot configuration -----------------------------------------------------------------------

    def _hot_config(self, query: Query, _: Any) -> Document:
        wanted = query.get("id")
        with self._lock:
            if wanted is None:
                return dict(self._hot)
            prefix = f"{wanted}:"
            return {
                key.removeprefix(prefix): value
                for key, value in self._hot.items() if key.startswith(prefix)
            }  # fmt: skip

    def _set_hot_config(self, query: Query, body: bytes | None) -> None:
        values, wanted = object_of(body), query.get("id", "")
        for key, value in values.items():
            if key not in HOT_KEYS or not isinstance(value, str):
                raise Refused(500, f'Configure(InvalidArguments("unknown key {key}"))')
        with self._lock:
            self._hot.update({f"{wanted}:{key}": value for key, value in values.items()})
        auth = values.get("registry_auth")
        if not auth:
            return
        found = self._service.configs(wanted)
        hosts = {backend.get("registry", {}).get("host") for backend in found}
        for host in hosts - {None}:
            try:
                self._engine.login({"host": host, "auth": auth})
            except FscacheError as e:
                raise Refused(500, f'Configure(InvalidArguments("{e}"))') from e


def _unexpected(call: str, event: str) -> Refused:
    return Refused(400, f'{call}(DaemonAbnormal(UnexpectedEvent("{event}")))')
