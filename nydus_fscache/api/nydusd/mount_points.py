"""Mounts of the kernel's EROFS below the mountpoint of a ``nydusd fuse``.

Guarantees: M/<id> appears only as a mount, and does not exist when the mount failed; a mount that
is there already is adopted.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nydus_fscache.api.nydusd.documents import Document, ErrorRing
from nydus_fscache.api.nydusd.layer_view import LayerViews, hide, layer_of
from nydus_fscache.api.nydusd.server import Refused
from nydus_fscache.api.nydusd.service import Engine, patiently, told
from nydus_fscache.api.nydusd.turns import Turns
from nydus_fscache.errors import BackendError, DaemonError, FscacheError, MountpointError
from nydus_fscache.kernel import mountinfo
from nydus_fscache.kernel.mount import IMAGE_TYPES, umount
from nydus_fscache.kernel.mount_trees import IdMap, bind_with_ids
from rafs_v6.values import dataclass

if TYPE_CHECKING:
    from nydus_fscache.config.nydusd import Config

EXISTS = "object or filesystem already exists"
MISSING = "object or filesystem doesn't exist"


@dataclass(slots=True)
class Instance:
    """A mount of a front.  ``name``: its path below M, as callers say it (``/`` is M itself)."""

    name: str
    source: str
    config: str
    prefetch_files: list[str] = field(default_factory=list)
    mounted_at: float = field(default_factory=time.time)


class MountPoints:
    """Thread-safe.  ``mountpoint``: M, resolved."""

    def __init__(
        self, mountpoint: Path, engine: Engine, errors: ErrorRing, log: logging.Logger,
        views: LayerViews,
    ) -> None:  # fmt: skip
        self._log = log
        self._views = views
        self._mountpoint = mountpoint
        self._engine = engine
        self._errors = errors
        self._lock = threading.RLock()
        self._turns: Turns[Path] = Turns()
        self._directories = threading.Lock()  # none goes between two steps of a path that is made
        self._mounts: dict[Path, Instance] = {}  # /x and /x/ are one place

    def all(self) -> list[Instance]:
        with self._lock:
            return list(self._mounts.values())

    def get(self, name: str) -> Instance | None:
        with contextlib.suppress(Refused), self._lock:  # of what cannot be a name
            return self._mounts.get(self.point(name))
        return None

    def adopt(self, instances: list[Instance]) -> None:
        """Those of an earlier front."""
        with self._lock:
            self._mounts |= {self.point(m.name): m for m in instances}

    def mount(self, instance: Instance) -> None:
        """Returns when it can be read.  Raises ``Refused``, with nothing left behind."""
        point = self.point(instance.name)
        with self._turns.of(point):
            self._mount(instance, point)

    def remount(self, instance: Instance) -> None:
        """In place of the image that is there, which stays when this one cannot be mounted."""
        point = self.point(instance.name)
        with self._turns.of(point):
            with self._lock:
                before = self._mounts.get(point)
            if before is None:
                raise mount_error(MISSING)
            self._umount(point)
            try:
                self._mount(instance, point)
            except Refused:
                self._mount(before, point)
                raise

    def _mount(self, instance: Instance, point: Path) -> None:
        config = self._config(instance)
        request = _request(instance, config, point)
        made = not point.exists()
        try:
            with self._directories:
                point.mkdir(parents=True, exist_ok=True)
            call = partial(self._mount_or_adopt, request)
            patiently(str(point), call, self._log, (BackendError, DaemonError))
            if config.id_mapping is not None:
                self._map_ids(point, config.id_mapping)
        except (FscacheError, OSError) as e:
            if made:
                self._remove_directories(point)
            self._errors.add(f"mount {instance.name}: {e}")
            self._log.error("mount %s of %s: %s", instance.name, instance.source, told(e))
            raise mount_error(told(e)) from e
        with self._lock:
            self._mounts[point] = instance
        self._views.show(point, Path(instance.source))
        self._load_files(instance, config, point)

    def _load_files(self, instance: Instance, config: Config, point: Path) -> None:
        """``prefetch_files``, before all the rest; those that are not in the image do not count."""
        policy = config.tuning.prefetch
        if not instance.prefetch_files or policy == "none":
            return
        files = instance.prefetch_files
        if not self._load(instance, point, files) and len(files) > 1:
            for path in files:
                self._load(instance, point, [path])
        if policy == "all":
            with contextlib.suppress(FscacheError):
                self._engine.prefetch({"mountpoint": str(point), "prefetch": policy})

    def _map_ids(self, point: Path, ids: IdMap) -> None:
        """By a mount over the engine's; nothing is mounted when it cannot be had."""
        if mapped_over(point):
            return
        try:
            bind_with_ids(point, point, ids)
        except FscacheError:
            with contextlib.suppress(FscacheError):
                self._engine.umount(str(point))
            raise

    def _load(self, instance: Instance, point: Path, paths: list[str]) -> bool:
        """False when one of them is not in the image."""
        try:
            self._engine.prefetch({"mountpoint": str(point), "paths": paths})
        except FscacheError as e:
            if len(paths) == 1:
                self._log.warning("%s: %s is not loaded ahead: %s", instance.name, paths[0], e)
            return False
        return True

    def _mount_or_adopt(self, request: Document) -> None:
        try:
            self._engine.mount(request)
        except MountpointError as e:
            if not self._is_ours(request):
                raise MountpointError(f"{EXISTS}: {e}", hint=e.hint) from e
            self._log.info("%s is mounted already: adopted", request["mountpoint"])

    def _is_ours(self, request: Document) -> bool:
        """Is this image mounted there by our engine?"""
        return any(
            m["mountpoint"] == request["mountpoint"] and m["image"] == request["source"]
            and m["mounted"] for m in self._engine.status()["mounts"]
        )  # fmt: skip

    def _config(self, instance: Instance) -> Config:
        from nydus_fscache.config import nydusd as configuration  # noqa: PLC0415 - half a MiB

        try:
            return configuration.parse(instance.config, f"the configuration of {instance.name}")
        except FscacheError as e:
            raise mount_error(told(e)) from e

    def umount(self, name: str) -> None:
        """Raises ``Refused`` when there is no such mount, or it is in use."""
        point = self.point(name)
        with self._turns.of(point):
            self._umount(point)

    def _umount(self, point: Path) -> None:
        with self._lock:
            known = self._mounts.get(point) is not None
        try:
            known = known or self._is_mounted(point)
            patiently(str(point), partial(self._umount_once, point, known=known), self._log)
        except FscacheError as e:
            raise mount_error(told(e)) from e
        self._remove_directories(point)
        with self._lock:
            self._mounts.pop(point, None)

    def _umount_once(self, point: Path, *, known: bool) -> None:
        """What the last try has unmounted is no error; ``Refused`` when nothing was there."""
        try:
            self._hide_view(point)
            if mapped_over(point):
                umount(point)
            self._engine.umount(str(point))
        except MountpointError as e:
            if self._is_mounted(point):
                raise
            if not known:
                raise mount_error(MISSING) from e

    def _remove_directories(self, point: Path) -> None:
        """From there up to M; those that others use are not empty."""
        with self._directories, contextlib.suppress(OSError):
            while point != self._mountpoint:
                point.rmdir()
                point = point.parent

    def _hide_view(self, point: Path) -> None:
        """The layer's directory is to be removed next."""
        for mount in self._engine.status()["mounts"]:
            layer = layer_of(point, Path(mount["image"]))
            if mount["mountpoint"] == str(point) and layer is not None:
                hide(layer)

    def _is_mounted(self, point: Path) -> bool:
        status = patiently(str(point), self._engine.status, self._log)
        return any(m["mountpoint"] == str(point) for m in status["mounts"])

    def point(self, name: str) -> Path:
        mountpoint = self._mountpoint
        if name == "/":
            return mountpoint
        if not name.startswith("/"):
            raise mount_error(f"{name!r} does not begin with a slash")
        parts = name.strip("/").split("/")
        if not all(parts) or any(part in (".", "..") for part in parts):
            raise Refused(400, f"QueryString(\"'mountpoint' {name!r} is not a path\")")
        return mountpoint.joinpath(*parts)


def mapped_over(point: Path) -> bool:
    """Is the same file system mounted over a mount at ``point``?"""
    found = [m.device for m in mountinfo.mounts_at(str(point)) if m.fstype in IMAGE_TYPES]
    return len(found) > 1 and found[-1] == found[-2]


def _request(instance: Instance, config: Config, point: Path) -> Document:
    return {
        "bootstrap": instance.source,
        **config.request(),
        "mountpoint": str(point),
        "source": instance.source,
        "prefetch": "none" if instance.prefetch_files else "auto",
    }


def mount_error(text: str) -> Refused:
    return Refused(500, f'Mount(MountFilesystem(Other("{text}")))')
