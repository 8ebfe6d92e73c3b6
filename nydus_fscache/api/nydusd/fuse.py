"""Mounts below a mountpoint: the service of ``nydusd fuse``.

Guarantees: M/<id> appears only as a mount of the kernel's EROFS, and does not exist when the
mount failed; a mount that is there already is adopted; what is mounted outlives the front unless
that is ended by SIGTERM.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nydus_fscache.api.nydusd import documents
from nydus_fscache.api.nydusd.documents import Document, ErrorRing
from nydus_fscache.api.nydusd.server import Query, Refused
from nydus_fscache.api.nydusd.service import Engine, Routes, backend_of, object_of, shown, told
from nydus_fscache.config import nydusd as configuration
from nydus_fscache.errors import BackendError, DaemonError, FscacheError, MountpointError

# The snapshotter forgets that a mount failed, and waits 30 s for the answer: better try again here.
MOUNT_PATIENCE_S = 20.0
_PAUSE_S = 0.5
_FS_TYPES = ("rafs",)


@dataclass(slots=True)
class Instance:
    """A mount of a front.  ``name``: its path below M, as callers say it (``/`` is M itself)."""

    name: str
    source: str
    config: str
    prefetch_files: list[str] = field(default_factory=list)
    mounted_at: float = field(default_factory=time.time)


class FuseMounts:
    """Thread-safe.  ``mountpoint``: M, resolved."""

    def __init__(
        self, mountpoint: Path, engine: Engine, errors: ErrorRing, log: logging.Logger
    ) -> None:
        self._log = log
        self._mountpoint = mountpoint
        self._engine = engine
        self._errors = errors
        self._lock = threading.RLock()
        self._mounting: dict[str, threading.Lock] = {}
        self._mounts: dict[str, Instance] = {}

    # -- a service ---------------------------------------------------------------------------

    def routes(self) -> Routes:
        return {
            ("GET", "/api/v1/daemon/backend"): self._backend,
            ("POST", "/api/v1/mount"): self._mount_call,
            ("PUT", "/api/v1/mount"): self._remount_call,
            ("DELETE", "/api/v1/mount"): self._umount_call,
            ("GET", "/api/v1/metrics"): self._fs_metrics,
            ("GET", "/api/v1/metrics/files"): lambda *_: {},
            ("GET", "/api/v1/metrics/pattern"): lambda *_: [],
            ("GET", "/api/v1/metrics/inflight"): lambda *_: None,
            ("GET", "/api/v1/metrics/backend"): self._backend_metrics,
            ("GET", "/api/v1/metrics/blobcache"): self._blobcache_metrics,
        }

    def backends(self) -> Document | None:
        return {
            m.name: documents.backend_entry(m.name, m.mounted_at, shown(m.config))
            for m in self._all()
        }

    def configs(self, wanted: str) -> list[Document]:
        return [
            backend_of(m.config) for m in self._all()
            if wanted in ("", "/") or m.name.strip("/") == wanted.strip("/")
        ]  # fmt: skip

    def saved(self) -> list[Document]:
        return [asdict(m) for m in self._all()]

    def restore(self, entries: list[Document]) -> None:
        mounts = [Instance(**entry) for entry in entries]
        with self._lock:
            self._mounts = {m.name: m for m in mounts}
        for instance in mounts:  # they are there, unless all of the node's daemon was lost
            with contextlib.suppress(Refused):
                self.mount(instance)

    def end(self) -> None:
        """A mount that is in use stays, and is said."""
        for instance in reversed(self._all()):
            try:
                self.umount(instance.name)
            except Refused as e:
                self._log.error("%s stays mounted: %s", instance.name, e)

    # -- calls -------------------------------------------------------------------------------

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
        name, command = _name(query), object_of(body)
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
                self._errors.add(f"mount {instance.name}: {e}")
                self._log.error("mount %s of %s: %s", instance.name, instance.source, told(e))
                raise _mount_error(told(e)) from e
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
                    self._log.info("%s is mounted already: adopted", request["mountpoint"])
                    return
                raise
            except (BackendError, DaemonError) as e:
                if time.monotonic() > deadline:
                    raise
                self._log.warning("%s: %s; trying again", request["mountpoint"], e)
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
            raise _mount_error(told(e)) from e
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
                    raise _mount_error(told(e)) from e
            except FscacheError as e:
                raise _mount_error(told(e)) from e
            if name != "/":
                with contextlib.suppress(OSError):
                    point.rmdir()
            with self._lock:
                self._mounts.pop(name, None)

    def _is_mounted(self, point: Path) -> bool:
        return any(m["mountpoint"] == str(point) for m in self._engine.status()["mounts"])

    def _point(self, name: str) -> Path:
        mountpoint = self._mountpoint
        if name == "/":
            return mountpoint
        parts = name.strip("/").split("/")
        if not all(parts) or any(part in (".", "..") for part in parts):
            raise Refused(400, f"QueryString(\"'mountpoint' {name!r} is not a path\")")
        return mountpoint.joinpath(*parts)

    @contextlib.contextmanager
    def _one_at_a_time(self, name: str) -> Iterator[None]:
        with self._lock:
            lock = self._mounting.setdefault(name, threading.Lock())
        with lock:
            yield

    def _all(self) -> list[Instance]:
        with self._lock:
            return list(self._mounts.values())

    # -- what is known of images ----------------------------------------------------------------

    def _known(self, query: Query) -> Instance:
        """By ``id``, with or without its slash; the only one where none is named."""
        wanted = query.get("id")
        mounts = self._all()
        if wanted is None and len(mounts) == 1:
            return mounts[0]
        for instance in mounts:
            if wanted is not None and instance.name.strip("/") == wanted.strip("/"):
                return instance
        raise Refused(404, "Metrics(Stats(NoCounter))")

    def _blobs(self, instance: Instance) -> tuple[Document, list[Document]]:
        status = self._engine.status()
        point = str(self._point(instance.name))
        ours = [mount for mount in status["mounts"] if mount["mountpoint"] == point]
        return status, documents.blobs_of(status, ours)

    def _fs_metrics(self, query: Query, _: Any) -> Document:
        return documents.fs_metrics(self._known(query).name)

    def _backend_metrics(self, query: Query, _: Any) -> Document:
        instance = self._known(query)
        kind = str(backend_of(instance.config).get("type"))
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


def _name(query: Query) -> str:
    name = query.get("mountpoint")
    if not name:
        raise Refused(
            400, "QueryString(\"'mountpoint' should be specified in query string\")"
        )
    return name if name.startswith("/") else f"/{name}"


def _mount_error(text: str) -> Refused:
    return Refused(500, f'Mount(MountFilesystem(Other("{text}")))')
