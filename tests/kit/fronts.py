"""A front of ``nydusd`` over a real socket, with an engine of a few lines."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import threading
from pathlib import Path
from typing import Any

from nydus_fscache.api.nydusd.documents import ErrorRing
from nydus_fscache.api.nydusd.front import Front, Identity, State
from nydus_fscache.api.nydusd.fscache import BoundImages
from nydus_fscache.api.nydusd.fuse import FuseMounts
from nydus_fscache.api.nydusd.layer_view import LayerViews
from nydus_fscache.api.nydusd.server import Listener
from nydus_fscache.errors import DaemonError, MountpointError, UsageError

CONFIG = json.dumps(
    {
        "device": {
            "backend": {
                "type": "registry",
                "config": {"host": "registry.example", "repo": "a/b", "auth": "dTpw"},
            },
            "cache": {"type": "blobcache", "config": {"work_dir": "cache"}},
        },
        "mode": "direct",
        "fs_prefetch": {"enable": False},
    }
)
BLOB = "c" * 64


class Engine:
    """Mounts are entries of a list; fails as it is told, and waits where it is told."""

    def __init__(self) -> None:
        self.gates: dict[str, threading.Event] = {}  # by mountpoint or fsid: waited for
        self.entered: list[str] = []
        self.deaths: list[str] = []  # calls in which the service dies, behind its work or before
        self.mounts: list[dict[str, Any]] = []
        self.failures: list[Exception] = []
        self.logins: list[dict[str, Any]] = []
        self.prefetches: list[Any] = []
        self.busy = False

    def _pass(self, name: str) -> None:
        self.entered.append(name)
        if name in self.gates:
            assert self.gates[name].wait(30), name

    def _dies(self, call: str) -> None:
        if call in self.deaths:
            self.deaths.remove(call)
            raise DaemonError("it does not answer")

    def start(self) -> None:
        pass

    def stop_if_idle(self) -> None:
        pass

    def transport(self) -> dict[str, Any]:
        if self.failures:
            raise self.failures.pop(0)
        return {"transport": "none"}

    def mount(self, request: dict[str, Any]) -> dict[str, Any]:
        self._pass(request["mountpoint"])
        if self.failures:
            raise self.failures.pop(0)
        if any(m["mountpoint"] == request["mountpoint"] for m in self.mounts):
            raise MountpointError("busy")
        self.mounts.append(
            {
                "mountpoint": request["mountpoint"], "image": request["source"], "mounted": True,
                "blobs": [BLOB], "fsid": "", "domain": "",
            }
        )  # fmt: skip
        self._dies("mounted")
        return {}

    def prefetch(self, request: dict[str, Any]) -> dict[str, Any]:
        if "/gone" in request.get("paths", ()):
            raise UsageError("/gone is not in the image")
        self.prefetches.append(request.get("paths") or request["prefetch"])
        return {}

    def umount(self, mountpoint: str) -> dict[str, Any]:
        found = [m for m in self.mounts if m["mountpoint"] == mountpoint]
        self._dies("umount")
        if not found or self.busy:
            raise MountpointError("nothing of ours" if not found else "in use")
        self.mounts.remove(found[0])
        self._dies("umounted")
        return {}

    def bind(self, request: dict[str, Any]) -> dict[str, Any]:
        self._pass(request["fsid"])
        if self.failures:
            raise self.failures.pop(0)
        self.mounts.append(
            {
                "mountpoint": "", "image": request["source"], "mounted": False, "blobs": [BLOB],
                "fsid": request["fsid"], "domain": request["domain"],
            }
        )  # fmt: skip
        self._dies("bound")
        return {}

    def unbind(self, fsid: str, domain: str) -> dict[str, Any]:
        found = [m for m in self.mounts if (m["fsid"], m["domain"]) == (fsid, domain)]
        self._dies("unbind")
        if not found:
            raise UsageError("not bound")
        if self.busy:
            raise MountpointError("in use")
        self.mounts.remove(found[0])
        self._dies("unbound")
        return {}

    def drop(self, name: str) -> dict[str, Any]:
        if self.busy:
            raise UsageError(f"{name} is in use")
        return {}

    def status(self) -> dict[str, Any]:
        self._dies("status")
        return {"root": "/r", "mounts": self.mounts, "blobs": []}

    def login(self, request: dict[str, Any]) -> dict[str, Any]:
        self.logins.append(request)
        return {}


class Supervisor:
    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def send(self, path: Path, document: dict[str, Any]) -> None:
        self.kept = json.loads(json.dumps(document))

    def receive(self, path: Path) -> dict[str, Any]:
        return self.kept


class Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self._path))


class Rig:
    def __init__(
        self, base: Path, *, state: State = State.RUNNING, singleton: bool = False
    ) -> None:
        self.path, self.mountpoint = base / "api.sock", base / "mnt"
        self.mountpoint.mkdir(exist_ok=True)
        self.engine, self.supervisor, errors = Engine(), Supervisor(), ErrorRing()
        log = logging.getLogger("test")
        self.service = (
            BoundImages(self.engine, errors) if singleton
            else FuseMounts(
                self.mountpoint, self.engine, errors, log, LayerViews(base / "views", log)
            )
        )  # fmt: skip
        self.front = Front(
            Identity("d1", base / "supervisor"), self.service, self.engine, self.supervisor,
            errors, state, log,
        )  # fmt: skip
        self.listener = Listener(self.path)
        self.listener.serve(self.front.answer)

    def call(self, method: str, target: str, body: Any = None) -> tuple[int, Any]:
        connection = Unix(self.path)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, target, data)
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None
        finally:
            connection.close()

    def mount(self, name: str, source: str = "/image.boot") -> tuple[int, Any]:
        body = {"fs_type": "rafs", "source": source, "config": CONFIG, "prefetch_files": None}
        return self.call("POST", f"/api/v1/mount?mountpoint={name}", body)
