"""The node's daemon as a front's ``Engine``: calls of its own API, and its start when none runs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from nydus_fscache.api.client import CACHEFILES, Client
from nydus_fscache.api.nydusd.documents import Document
from nydus_fscache.errors import DaemonError


class NodeDaemon:
    """The daemon of ``root``: keeper and service, which outlive the front."""

    def __init__(self, root: Path, cachefiles: Path | None = None) -> None:
        """``cachefiles``: the kernel's directory, where it is not below ``root``."""
        self._client = Client(root)
        self._cachefiles = cachefiles

    def start(self) -> None:
        """Returns when it answers."""
        if self._cachefiles is not None:
            os.environ[CACHEFILES] = str(self._cachefiles)
        self._client.start_daemon()

    def stop_if_idle(self) -> None:
        """It serves nobody any more, unless another front has mounts."""
        with contextlib.suppress(DaemonError):
            if self._client.call("POST", "/v1/stop", {"if_idle": True}).get("stopped", True):
                self._client.wait_for_end()

    def mount(self, request: Document) -> Document:
        self.start()
        return self._document("POST", "/v1/mounts", request)

    def prefetch(self, request: Document) -> Document:
        return self._document("POST", "/v1/prefetches", request)

    def umount(self, mountpoint: str) -> Document:
        self.start()
        found = self._client.call("DELETE", "/v1/mounts", mountpoint=mountpoint)
        return dict(found)

    def bind(self, request: Document) -> Document:
        self.start()
        return self._document("POST", "/v1/bindings", request)

    def unbind(self, fsid: str, domain: str) -> Document:
        """An image that is still mounted is served until the kernel lets go of it."""
        self.start()
        found = self._client.call(
            "DELETE", "/v1/bindings", fsid=fsid, domain=domain, lazy="true"
        )
        return dict(found)

    def drop(self, name: str) -> Document:
        return dict(self._client.call("DELETE", "/v1/cached", name=name))

    def status(self) -> Document:
        self.start()
        return self._document("GET", "/v1/status")

    def transport(self) -> Document:
        """Raises ``FscacheError`` where none works."""
        return self._document("GET", "/v1/transport")

    def login(self, request: Document) -> Document:
        return self._document("POST", "/v1/credentials", request)

    def _document(self, method: str, path: str, request: Document | None = None) -> Document:
        return dict(self._client.call(method, path, request))
