"""One nydusd as its callers see it: a state machine, the mounts below its mountpoint, its calls.

Guarantees: M/<id> appears only as a mount of the kernel's EROFS, and does not exist when the
mount failed; a mount that is there already is adopted; what is mounted outlives this process
unless it is ended by SIGTERM.  It serves nobody's data: the node's daemon does (``Engine``).

Sources of the behaviour: docs/nydusd.md.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from nydus_fscache.api.nydusd import documents
from nydus_fscache.api.nydusd.documents import Document
from nydus_fscache.api.nydusd.server import Query, Refused
from nydus_fscache.config import nydusd as configuration
from nydus_fscache.errors import BackendError, DaemonError, FscacheError, MountpointError

log = logging.getLogger("nydusd")

# The snapshotter forgets that a mount failed, and waits 30 s for the answer: better try again here.
MOUNT_PATIENCE_S = 20.0
_PAUSE_S = 0.5
LEVELS = ("off", "error", "warn", "info", "debug", "trace")
HOT_KEYS = ("registry_auth", "proxy_url", "dragonfly_scheduler_endpoint")
_FS_TYPES = ("rafs",)


class State(Enum):
    INIT = "INIT"
    READY = "READY"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"


class Engine(Protocol):
    """The node's daemon, as far as a front needs it; errors are ``FscacheError``."""

    def mount(self, request: Document) -> Document: ...
    def umount(self, mountpoint: str) -> Document: ...
    def status(self) -> Document: ...
    def login(self, request: Document) -> Document: ...


@dataclass(slots=True)
class Instance:
    """A mount of a front.  ``name``: its path below M, as callers say it (``/`` is M itself)."""

    name: str
    source: str
    config: str
    prefetch_files: list[str] = field(default_factory=list)
    mounted_at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class Identity:
    """What the command line said.  ``mountpoint``: resolved."""

    mountpoint: Path
    instance: str | None = None
    supervisor: Path | None = None


class Supervisor(Protocol):
    """Keeps bytes and a descriptor while no process of ours lives."""

    def send(self, path: Path, document: Document) -> None: ...
    def receive(self, path: Path) -> Document: ...


class Front:
    """Thread-safe: ``answer`` is called by the server's threads."""

    def __init__(
        self, identity: Identity, engine: Engine, supervisor: Supervisor, state: State
    ) -> None:
        self._identity = identity
        self._engine = engine
        self._supervisor = supervisor
        self._state = state
        self._lock = threading.RLock()
        self._mounting: dict[str, threading.Lock] = {}
        self._mounts: dict[str, Instance] = {}
        self._hot: dict[str, str] = {}
        self.errors = documents.ErrorRing()
        self.exit_asked = threading.Event()
        self._calls: dict[tuple[str, str], Callable[[Query, bytes | None], Any]] = {
            ("GET", "/api/v1/daemon"): self._info,
            ("PUT", "/api/v1/daemon"): self._configure,
            ("GET", "/api/v1/daemon/events"): lambda *_: self.errors.document(),
            ("GET", "/api/v1/daemon/backend"): self._backend,
            ("PUT", "/api/v1/daemon/start"): self._start,
            ("PUT", "/api/v1/daemon/exit"): self._exit,
            ("PUT", "/api/v1/daemon/fuse/sendfd"): self._send_state,
            ("PUT", "/api/v1/daemon/fuse/takeover"): self._take_over,
            ("POST", "/api/v1/mount"): self._mount_call,
            ("PUT", "/api/v1/mount"): self._remount_call,
            ("DELETE", "/api/v1/mount"): self._umount_call,
            ("GET", "/api/v1/metrics"): self._fs_metrics,
            ("GET", "/api/v1/metrics/files"): lambda *_: {},
            ("GET", "/api/v1/metrics/pattern"): lambda *_: [],
            ("GET", "/api/v1/metrics/inflight"): lambda *_: None,
            ("GET", "/api/v1/metrics/backend"): self._backend_metrics,
            ("GET", "/api/v1/metrics/blobcache"): self._blobcache_metrics,
            ("GET", "/api/v1/config"): self._hot_config,
            ("PUT", "/api/v1/config"): self._set_hot_config,
            ("GET", "/api/v2/daemon"): lambda *_: self._info_v2(),
            ("PUT", "/api/v2/daemon"): self._configure,
        }
        self._paths = {path for _, path in self._calls} | {"/api/v2/blobs"}

    @property
    def state(self) -> State:
        return self._state

    # -- calls -------------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: Query, body: bytes | None) -> Any:
        call = self._calls.get((method, path))
        if call is None:
            if path == "/api/v2/blobs":
                raise Refused(501, "Unsupported")
            raise Refused(400 if path in self._paths else 404, "BadRequest"
                          if path in self._paths else "NoRoute")  # fmt: skip
        takes_body = path.endswith(("/daemon", "/mount", "/config")) and method in ("PUT", "POST")
        if takes_body != (body is not None):
            raise Refused(400, "BadRequest")
        return call(query, body)

    def _info(self, *_: Any) -> Document:
        with self._lock:
            mounts = list(self._mounts.values())
        backends = {
            m.name: documents.backend_entry(m.name, m.mounted_at, _backend_of(m.config))
            for m in mounts
        }
        return self._document(backends)

    def _info_v2(self) -> Document:
        return self._document(None)

    def _document(self, backends: Document | None) -> Document:
        identity = self._identity
        supervisor = None if identity.supervisor is None else str(identity.supervisor)
        return documents.daemon_info(identity.instance, supervisor, self._state.value, backends)

    def _configure(self, _: Query, body: bytes | None) -> None:
        level = str(_object(body).get("log_level", "")).lower()
        if level not in LEVELS:
            raise Refused(500, f'Configure(InvalidArguments("log level {level}"))')
        names = {"off": logging.CRITICAL + 1, "trace": logging.DEBUG, "warn": logging.WARNING}
        logging.getLogger().setLevel(names.get(level, level.upper()))

    def _start(self, *_: Any) -> None:
        with self._lock:
            if self._state is not State.READY:
                raise _unexpected("Start")
            self._state = State.RUNNING

    def _exit(self, *_: Any) -> None:
        """The successor has the mounts: they stay."""
        with self._lock:
            self._state = State.STOPPED
        self.exit_asked.set()

    def _mount_call(self, query: Query, body: bytes | None) -> None:
        self.mount(self._instance(query, body))

    def _remount_call(self, query: Query, body: bytes | None) -> None:
        instance = self._instance(query, body)
        with self._lock:
            if instance.name not in self._mounts:
                raise _mount_error(f"no file system at {instance.name}")
        self.umount(instance.name)
        self.mount(instance)

    def _umount_call(self, query: Query, _: bytes | None) -> None:
        self.umount(_name(query))

    def _instance(self, query: Query, body: bytes | None) -> Instance:
        name, command = _name(query), _object(body)
        source, config = command.get("source"), command.get("config")
        if not isinstance(source, str) or not isinstance(config, str):
            raise Refused(400, 'ParseBody(Error("missing field `source` or `config`"))')
        if command.get("fs_type") not in _FS_TYPES:
            raise _mount_error(f"file system type {command.get('fs_type')!r}: only rafs is served")
        files = command.get("prefetch_files") or []
        if not isinstance(files, list) or not all(
            isinstance(path, str) and path.startswith("/") for path in files
        ):
            raise _mount_error("prefetch_files must be absolute paths")
        return Instance(name, source, config, files)

    # -- mounts ------------------------------------------------------------------------------

    def mount(self, instance: Instance) -> None:
        """Returns when it can be read.  Raises ``Refused``, with nothing left behind."""
        point = self._point(instance.name)
        with self._one_at_a_time(instance.name):
            request = self._request(instance, point)
            made = not point.exists()
            try:
                point.mkdir(parents=True, exist_ok=True)
                self._mount_with_patience(request)
            except (FscacheError, OSError) as e:
                if made:
                    with contextlib.suppress(OSError):
                        point.rmdir()
                self.errors.add(f"mount {instance.name}: {e}")
                log.error("mount %s of %s: %s", instance.name, instance.source, _told(e))
                raise _mount_error(_told(e)) from e
            with self._lock:
                self._mounts[instance.name] = instance

    def _mount_with_patience(self, request: Document) -> None:
        deadline = time.monotonic() + MOUNT_PATIENCE_S
        while True:
            try:
                self._engine.mount(request)
                return
            except MountpointError:
                if self._is_ours(request):
                    log.info("%s is mounted already: adopted", request["mountpoint"])
                    return
                raise
            except (BackendError, DaemonError) as e:
                if time.monotonic() > deadline:
                    raise
                log.warning("%s: %s; trying again", request["mountpoint"], e)
                time.sleep(_PAUSE_S)

    def _is_ours(self, request: Document) -> bool:
        """Is this image mounted there by our engine?"""
        return any(
            m["mountpoint"] == request["mountpoint"] and m["image"] == request["source"]
            and m["mounted"] for m in self._engine.status()["mounts"]
        )  # fmt: skip

    def _request(self, instance: Instance, point: Path) -> Document:
        try:
            parsed = configuration.parse(instance.config, f"the configuration of {instance.name}")
        except FscacheError as e:
            raise _mount_error(_told(e)) from e
        return {
            "bootstrap": instance.source,
            "backend": parsed.backend,
            "tuning": asdict(parsed.tuning),
            "mountpoint": str(point),
            "source": instance.source,
            "prefetch": "auto",
        }

    def umount(self, name: str) -> None:
        """Raises ``Refused`` when there is no such mount, or it is in use."""
        with self._one_at_a_time(name):
            with self._lock:
                known = self._mounts.get(name)
            point = self._point(name)
            try:
                self._engine.umount(str(point))
            except MountpointError as e:
                if known is None or self._is_mounted(point):
                    raise _mount_error(_told(e)) from e
            except FscacheError as e:
                raise _mount_error(_told(e)) from e
            if name != "/":
                with contextlib.suppress(OSError):
                    point.rmdir()
            with self._lock:
                self._mounts.pop(name, None)

    def umount_all(self) -> None:
        """Before an end by SIGTERM; a mount that is in use stays, and is said."""
        with self._lock:
            names = list(self._mounts)
        for name in reversed(names):
            try:
                self.umount(name)
            except Refused as e:
                log.error("%s stays mounted: %s", name, e)

    def _is_mounted(self, point: Path) -> bool:
        return any(m["mountpoint"] == str(point) for m in self._engine.status()["mounts"])

    def _point(self, name: str) -> Path:
        mountpoint = self._identity.mountpoint
        if name == "/":
            return mountpoint
        parts = name.strip("/").split("/")
        if not all(parts) or any(part in (".", "..") for part in parts):
            raise Refused(400, f"QueryString(\"'mountpoint' {name!r} is not a path\")")
        return mountpoint.joinpath(*parts)

    @contextlib.contextmanager
    def _one_at_a_time(self, name: str) -> Any:
        with self._lock:
            lock = self._mounting.setdefault(name, threading.Lock())
        with lock:
            yield

    # -- state for a successor ---------------------------------------------------------------

    def _send_state(self, *_: Any) -> None:
        path = self._identity.supervisor
        if path is None:
            return
        with self._lock:
            mounts = [asdict(m) for m in self._mounts.values()]
        try:
            self._supervisor.send(path, {"mounts": mounts})
        except FscacheError as e:
            raise Refused(500, f'Upgrade(DaemonAbnormal(Other("{e}")))') from e

    def _take_over(self, *_: Any) -> None:
        path = self._identity.supervisor
        if path is None:
            raise Refused(500, 'Upgrade(DaemonAbnormal(Other("no supervisor")))')
        with self._lock:
            if self._state is not State.INIT:
                raise _unexpected("Takeover")
        try:
            document = self._supervisor.receive(path)
            mounts = [Instance(**entry) for entry in document["mounts"]]
        except (FscacheError, TypeError, KeyError) as e:
            raise Refused(500, f'Upgrade(DaemonAbnormal(Other("{e}")))') from e
        with self._lock:
            self._mounts = {m.name: m for m in mounts}
            self._state = State.READY
        for instance in mounts:  # they are there, unless all of the node's daemon was lost
            with contextlib.suppress(Refused):
                self.mount(instance)

    # -- what is known of images ----------------------------------------------------------------

    def _known(self, query: Query) -> Instance:
        """By ``id``, with or without its slash; the only one where none is named."""
        wanted = query.get("id")
        with self._lock:
            mounts = list(self._mounts.values())
        if wanted is None and len(mounts) == 1:
            return mounts[0]
        for instance in mounts:
            if wanted is not None and instance.name.strip("/") == wanted.strip("/"):
                return instance
        raise Refused(404, "Metrics(Stats(NoCounter))")

    def _blobs(self, instance: Instance) -> tuple[Document, list[Document]]:
        status = self._engine.status()
        point = str(self._point(instance.name))
        wanted = {
            blob for mount in status["mounts"] if mount["mountpoint"] == point
            for blob in mount["blobs"]
        }  # fmt: skip
        return status, [blob for blob in status["blobs"] if blob["id"] in wanted]

    def _fs_metrics(self, query: Query, _: Any) -> Document:
        return documents.fs_metrics(self._known(query).name)

    def _backend_metrics(self, query: Query, _: Any) -> Document:
        instance = self._known(query)
        kind = str(_backend_of(instance.config).get("type"))
        return documents.backend_metrics(kind, self._blobs(instance)[1])

    def _blobcache_metrics(self, query: Query, _: Any) -> Document:
        status, blobs = self._blobs(self._known(query))
        return documents.blobcache_metrics(f"{status['root']}/cache", blobs)

    def _backend(self, query: Query, _: Any) -> Document:
        name = query.get("mountpoint")
        with self._lock:
            if name not in self._mounts:
                raise Refused(500, f'FsBackendInfo(NotFound("{name}"))')
            source = self._mounts[name].source
        return documents.super_block(Path(source))

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
        values, wanted = _object(body), query.get("id", "")
        for key, value in values.items():
            if key not in HOT_KEYS or not isinstance(value, str):
                raise Refused(500, f'Configure(InvalidArguments("unknown key {key}"))')
        with self._lock:
            self._hot.update({f"{wanted}:{key}": value for key, value in values.items()})
            mounts = [
                m for m in self._mounts.values()
                if wanted in ("", "/") or m.name.strip("/") == wanted.strip("/")
            ]  # fmt: skip
        auth = values.get("registry_auth")
        if not auth:
            return
        hosts = {_backend_of(m.config).get("registry", {}).get("host") for m in mounts}
        for host in hosts - {None}:
            try:
                self._engine.login({"host": host, "auth": auth})
            except FscacheError as e:
                raise Refused(500, f'Configure(InvalidArguments("{e}"))') from e


def _name(query: Query) -> str:
    name = query.get("mountpoint")
    if not name:
        raise Refused(
            400, "QueryString(\"'mountpoint' should be specified in query string\")"
        )
    return name if name.startswith("/") else f"/{name}"


def _object(body: bytes | None) -> Document:
    try:
        document = json.loads(body or b"")
    except (ValueError, RecursionError) as e:
        raise Refused(400, f'ParseBody(Error("{e}"))') from e
    if not isinstance(document, dict):
        raise Refused(400, 'ParseBody(Error("not an object"))')
    return document


def _backend_of(config: str) -> Document:
    try:
        return configuration.parse(config, "configuration").backend
    except FscacheError:
        return {}


def _unexpected(event: str) -> Refused:
    return Refused(400, f'Configure(DaemonAbnormal(UnexpectedEvent("{event}")))')


def _mount_error(text: str) -> Refused:
    return Refused(500, f'Mount(MountFilesystem(Other("{text}")))')


def _told(error: Exception) -> str:
    hint = getattr(error, "hint", None)
    return f"{error}; {hint}" if hint else str(error)
