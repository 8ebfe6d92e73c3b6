"""The trees of images, mounted by the daemon, and shown to each viewer with its own owners.

A viewer is whoever sees owners in the same way: the host, or a user with a mapping of its
own (rootless Podman).  Such a viewer gets an id-mapped clone of the daemon's mount: as lazy as
that one, and owned by its root.  A directory is closed to all but its viewer, as an image may be
had with the host's credentials only; a viewer other than root gets images without any.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nydus_fscache.api.client import Client
from nydus_fscache.errors import BadImage, MountpointError, NoDaemon
from nydus_fscache.kernel.mount import umount
from nydus_fscache.kernel.mount_trees import bind_with_namespace
from nydus_fscache.kernel.mountinfo import find_mount
from nydus_fscache.kernel.namespace import mount_namespace
from nydus_fscache.registry.image_name import ImageName
from nydus_fscache.registry.pull import pull_bootstrap
from nydus_fscache.runtimes.store.catalogue import NOBODY, Image, Layer
from rafs_v6.values import dataclass

log = logging.getLogger("store")

HOST = "host"
_EMPTY = "empty-"  # trees of all layers but one: one each, since overlayfs takes no directory twice


@dataclass(frozen=True, slots=True)
class Viewer:
    """``pid``: a process of it, which waits for our answer; 0 for the host."""

    name: str
    uid: int
    pid: int

    @property
    def is_root(self) -> bool:
        return self.uid == 0


def viewer_of(uid: int, pid: int) -> Viewer:
    """``OSError`` when the process has gone."""
    theirs = f"/proc/{pid}/ns/user"
    if pid == 0 or os.readlink(theirs) == os.readlink("/proc/self/ns/user"):
        return Viewer(HOST, uid, 0)
    maps = [Path(f"/proc/{pid}/{kind}_map").read_bytes() for kind in ("uid", "gid")]
    mapping = hashlib.sha256(b"\0".join(b" ".join(one.split()) for one in maps)).hexdigest()[:12]
    return Viewer(f"u{uid}-{mapping}", uid, pid)


class Views:
    """``directory``: of all mounts.  ``environ``: where credentials are found.  ``blobs``: members
    of a mount request, where blobs are not in the registry; for the host's images only, as they
    carry its credentials.  Thread-safe."""

    def __init__(
        self, directory: Path, client: Client, environ: Mapping[str, str],
        plain_http: frozenset[str], blobs: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self._blobs = blobs
        self._directory, self._client = directory, client
        self._environ, self._plain_http = environ, plain_http
        self._lock = threading.Lock()

    def empty(self, layer: Layer, viewer: Viewer) -> Path:
        with self._lock:
            return self._made(viewer, _empty(layer))

    def tree(self, image: Image, viewer: Viewer) -> Path:
        """Where the image is mounted for the viewer, from now on.  Raises ``FscacheError``."""
        with self._lock:
            host = self._made(Viewer(HOST, 0, 0), _key(image))
            if find_mount(host) is None:
                self._mount(image, host)
            if viewer.name == HOST:
                return host
            mine = self._made(viewer, _key(image))
            if find_mount(mine) is None:
                userns = os.open(f"/proc/{viewer.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    bind_with_namespace(host, mine, userns)
                finally:
                    os.close(userns)
            return mine

    def drop(self, image: Image, viewer: str, *, last: bool) -> None:
        """The viewer's mount goes; with ``last`` the daemon's, too.  One in use stays."""
        with self._lock:
            for layer in image.layers:
                with contextlib.suppress(OSError):
                    (self._directory / viewer / _empty(layer)).rmdir()
            if viewer != HOST:
                self._umount(self._directory / viewer / _key(image))
            if last:
                self._end(self._directory / HOST / _key(image))

    def drop_all(self) -> None:
        with self._lock:
            viewers = [path for path in self._directory.iterdir() if path.is_dir()]
            found = [point for viewer in viewers for point in sorted(viewer.iterdir())]
            for point in sorted(found, key=lambda point: point.parent.name == HOST):
                if point.name.startswith(_EMPTY):
                    continue
                if point.parent.name == HOST:
                    self._end(point)
                else:
                    self._umount(point)

    def _made(self, viewer: Viewer, name: str) -> Path:
        directory = self._directory / viewer.name
        if not directory.exists():
            directory.mkdir(0o700)
            os.chown(directory, viewer.uid if viewer.name != HOST else 0, -1)
        place = directory / name
        if not place.exists():
            place.mkdir(0o755)
            os.chown(place, viewer.uid if viewer.name != HOST else 0, -1)
        return place

    def _mount(self, image: Image, at: Path) -> None:
        name = ImageName.parse(image.name)
        reference = f"{name.reference.host}/{name.reference.repo}@{image.manifest}"
        pulled = pull_bootstrap(
            reference, plain_http=name.reference.host in self._plain_http,
            environ=NOBODY if image.anonymous else self._environ,
        )  # fmt: skip
        if pulled.manifest_digest != image.manifest:
            raise BadImage(f"{image.name} has another manifest now", hint="pull it again")
        with tempfile.TemporaryDirectory(prefix="nydus-fscache-") as scratch:
            bootstrap = Path(scratch) / "image.boot"
            bootstrap.write_bytes(pulled.bootstrap)
            request = {
                "bootstrap": str(bootstrap), "backend": pulled.backend, "mountpoint": str(at),
                "transport": "auto", "prefetch": "auto", "cache_limit": None,
                "source": image.name, "mount_namespace": mount_namespace(),
                **({} if image.anonymous else self._blobs),
            }  # fmt: skip
            self._client.call_first("POST", "/v1/mounts", request)
        log.info("%s is mounted at %s", image.name, at)

    def _umount(self, point: Path) -> None:
        with contextlib.suppress(MountpointError):
            umount(point, lazy=True)
        with contextlib.suppress(OSError):
            point.rmdir()

    def _end(self, point: Path) -> None:
        try:
            self._client.call("DELETE", "/v1/mounts", mountpoint=str(point))
        except NoDaemon:
            pass
        except MountpointError as e:
            log.info("%s stays: %s", point, e)
        with contextlib.suppress(OSError):
            point.rmdir()


def _empty(layer: Layer) -> str:
    return f"{_EMPTY}{layer.digest.removeprefix('sha256:')[:40]}"


def _key(image: Image) -> str:
    access = "-anonymous" if image.anonymous else ""
    return f"{image.manifest.removeprefix('sha256:')[:40]}{access}"
