"""The service of ``nydusd fuse``: its calls and documents, over the mounts below a mountpoint.

What is mounted outlives the front unless that is ended by SIGTERM.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nydus_fscache.api.nydusd import documents
from nydus_fscache.api.nydusd.documents import Document, ErrorRing
from nydus_fscache.api.nydusd.layer_view import LayerViews
from nydus_fscache.api.nydusd.mount_points import MISSING, Instance, MountPoints, mount_error
from nydus_fscache.api.nydusd.server import Query, Refused
from nydus_fscache.api.nydusd.service import (
    Engine,
    Routes,
    backend_of,
    named,
    no_counter,
    object_of,
    shown,
    text_of,
    unsupported,
)

_FS_TYPES = ("rafs",)


class FuseMounts:
    """Thread-safe.  ``mountpoint``: M, resolved."""

    def __init__(
        self, mountpoint: Path, engine: Engine, errors: ErrorRing, log: logging.Logger,
        views: LayerViews,
    ) -> None:  # fmt: skip
        self._log = log
        self._engine = engine
        self._points = MountPoints(mountpoint, engine, errors, log, views)

    # -- a service ---------------------------------------------------------------------------

    def routes(self) -> Routes:
        return {
            ("GET", "/api/v1/daemon/backend"): self._backend,
            ("POST", "/api/v1/mount"): self._mount_call,
            ("PUT", "/api/v1/mount"): self._remount_call,
            ("DELETE", "/api/v1/mount"): self._umount_call,
            ("GET", "/api/v1/metrics"): self._fs_metrics,
            ("GET", "/api/v1/mount"): self._no_such_call,
            ("GET", "/api/v1/metrics/files"): self._file_metrics,
            ("GET", "/api/v1/metrics/pattern"): self._patterns,
            ("GET", "/api/v1/metrics/inflight"): lambda *_: None,
            ("GET", "/api/v1/metrics/backend"): self._backend_metrics,
            ("GET", "/api/v1/metrics/blobcache"): self._blobcache_metrics,
            ("PUT", "/api/v2/blobs"): self._bind_call,
            ("DELETE", "/api/v2/blobs"): self._unbind_call,
        }

    def backends(self) -> Document | None:
        return {
            m.name: documents.backend_entry(m.name, m.mounted_at, shown(m.config))
            for m in self._points.all()
        }

    def configs(self, wanted: str) -> list[Document]:
        return [
            backend_of(m.config) for m in self._points.all()
            if wanted in ("", "/") or m.name.strip("/") == wanted.strip("/")
        ]  # fmt: skip

    def saved(self) -> list[Document]:
        return [asdict(m) for m in self._points.all()]

    def restore(self, entries: list[Document]) -> None:
        mounts = [Instance(**entry) for entry in entries]
        self._points.adopt(mounts)
        for instance in mounts:  # they are there, unless all of the node's daemon was lost
            with contextlib.suppress(Refused):
                self._points.mount(instance)

    def mount(self, instance: Instance) -> None:
        """Raises ``Refused``, with nothing left behind."""
        self._points.mount(instance)

    def end(self) -> None:
        """A mount that is in use stays, and is said."""
        for instance in reversed(self._points.all()):
            try:
                self._points.umount(instance.name)
            except Refused as e:
                self._log.error("%s stays mounted: %s", instance.name, e)

    # -- calls -------------------------------------------------------------------------------

    def _mount_call(self, query: Query, body: bytes | None) -> None:
        self._points.mount(self._instance(query, body))

    def _remount_call(self, query: Query, body: bytes | None) -> None:
        self._points.remount(self._instance(query, body))

    def _umount_call(self, query: Query, _: bytes | None) -> None:
        self._points.umount(named(query, "mountpoint"))

    def _no_such_call(self, query: Query, _: bytes | None) -> None:
        named(query, "mountpoint")
        raise Refused(400, "BadRequest")

    def _bind_call(self, _: Query, body: bytes | None) -> None:
        text_of(object_of(body), "type", body)
        raise unsupported("CreateBlobObject")

    def _unbind_call(self, query: Query, _: bytes | None) -> None:
        if "domain_id" in query:
            raise unsupported("DeleteBlobObject")
        if "blob_id" not in query:
            raise Refused(400, "BadRequest")

    def _instance(self, query: Query, body: bytes | None) -> Instance:
        name, command = named(query, "mountpoint"), object_of(body)
        source, config = text_of(command, "source", body), text_of(command, "config", body)
        if command.get("fs_type") not in _FS_TYPES:
            raise mount_error(f"file system type {command.get('fs_type')!r}: only rafs is served")
        files = command.get("prefetch_files") or []
        if not isinstance(files, list) or not all(
            isinstance(path, str) and path.startswith("/") for path in files
        ):
            raise mount_error("prefetch_files must be absolute paths")
        return Instance(name, source, config, files)

    # -- what is known of images ----------------------------------------------------------------

    def _known(self, query: Query, call: str) -> Instance:
        """By ``id``, with or without its slash; the only one where none is named."""
        wanted = query.get("id")
        mounts = self._points.all()
        if wanted is None and len(mounts) == 1:
            return mounts[0]
        for instance in mounts:
            if wanted is not None and instance.name.strip("/") == wanted.strip("/"):
                return instance
        raise no_counter(call)

    def _blobs(self, instance: Instance) -> tuple[Document, list[Document]]:
        status = self._engine.status()
        point = str(self._points.point(instance.name))
        ours = [mount for mount in status["mounts"] if mount["mountpoint"] == point]
        return status, documents.blobs_of(status, ours)

    def _fs_metrics(self, query: Query, _: Any) -> Document:
        return documents.fs_metrics(self._known(query, "GlobalMetrics").name)

    def _file_metrics(self, query: Query, _: Any) -> Any:
        """The kernel serves files: none of their counters are known."""
        self._known(query, "FsFilesMetrics")
        return [] if query.get("latest") == "true" else {}

    def _patterns(self, query: Query, _: Any) -> Any:
        self._known(query, "Pattern")
        return []

    def _backend_metrics(self, query: Query, _: Any) -> Document:
        instance = self._known(query, "BackendMetrics")
        kind = str(backend_of(instance.config).get("type"))
        return documents.backend_metrics(kind, self._blobs(instance)[1])

    def _blobcache_metrics(self, query: Query, _: Any) -> Document:
        status, blobs = self._blobs(self._known(query, "BlobcacheMetrics"))
        return documents.blobcache_metrics(f"{status['root']}/cache", blobs)

    def _backend(self, query: Query, _: Any) -> Document:
        found = self._points.get(named(query, "mountpoint"))
        if found is None:
            raise Refused(500, f'FsBackendInfo(Metrics(Daemon(Other("{MISSING}"))))')
        return documents.super_block(Path(found.source))
