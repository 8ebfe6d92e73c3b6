"""Layers of Docker's graph driver plugin: overlayfs over directories and over mounted images.

    <home>/<id>/diff     the layer, or of a container what it wrote
    <home>/<id>/parent   the id of the layer below, where there is one
    <home>/<id>/rafs     where the image is mounted, of a layer that holds image/image.boot
    <home>/<id>/merged, work   of a layer while somebody uses it
    <home>/l/<short>     a link to each layer's tree: the kernel takes a page of options

All that is needed after a restart is in these directories and in the kernel's mount table.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from nydus_fscache.api.client import Client
from nydus_fscache.errors import FscacheError, MountpointError, NoDaemon, UsageError
from nydus_fscache.kernel.mount import umount
from nydus_fscache.kernel.mountinfo import find_mount
from nydus_fscache.kernel.namespace import mount_namespace
from nydus_fscache.kernel.overlay import mount_overlay
from nydus_fscache.runtimes.docker import pack
from nydus_fscache.runtimes.docker.unpack import Source, unpack

log = logging.getLogger("docker")

BOOTSTRAP = Path("image/image.boot")
_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_SHORT = 20


class Layers:
    """``image``: the members of a mount request that say where blobs are.  Thread-safe."""

    def __init__(self, client: Client, image: Mapping[str, Any]) -> None:
        self._client, self._image = client, image
        self._home: Path | None = None
        self._lock = threading.RLock()
        self._uses: Counter[str] = Counter()

    def open(self, home: Path) -> None:
        (home / "l").mkdir(0o700, parents=True, exist_ok=True)
        self._home = home

    @property
    def home(self) -> Path:
        if self._home is None:
            raise UsageError("the driver was not initialised", hint="docker calls Init first")
        return self._home

    def _place(self, name: str) -> Path:
        if not _ID.fullmatch(name) or name in (".", "..", "l"):
            raise UsageError(f"{name!r} is not a layer's id")
        return self.home / name

    def exists(self, name: str) -> bool:
        return (self._place(name) / "diff").is_dir()

    def create(self, name: str, parent: str) -> None:
        place = self._place(name)
        with self._lock:
            place.mkdir(0o711)
            (place / "diff").mkdir(0o755)
            if parent:
                (place / "parent").write_text(parent)
                below = os.stat(self._place(parent) / "diff")
                os.chown(place / "diff", below.st_uid, below.st_gid)
                os.chmod(place / "diff", below.st_mode & 0o7777)

    def remove(self, name: str) -> None:
        place = self._place(name)
        with self._lock:
            self._uses.pop(name, None)
            self._umount(place / "merged")
            self._end(place / "rafs")
            self._link(name).unlink(missing_ok=True)
            if place.exists():
                shutil.rmtree(place)

    # -- mounts

    def get(self, name: str) -> Path:
        """Where the layer with all below it is to be seen; counted."""
        place = self._place(name)
        with self._lock:
            if not self.exists(name):
                raise UsageError(f"there is no layer {name}")
            lowers = self._below(name)
            if not lowers and self._tree(name) == place / "diff":
                return place / "diff"
            merged = place / "merged"
            if find_mount(merged) is None:
                self._mount(name, lowers, merged)
            self._uses[name] += 1
            return merged

    def put(self, name: str) -> None:
        """One use less; of a use that a predecessor counted, the last."""
        with self._lock:
            self._uses[name] -= 1
            if self._uses[name] <= 0:
                del self._uses[name]
                self._umount(self._place(name) / "merged")

    def _mount(self, name: str, lowers: list[str], merged: Path) -> None:
        place = self._place(name)
        merged.mkdir(0o755, exist_ok=True)
        own = self._tree(name)
        if own != place / "diff":  # an image: nothing can be written beside it
            trees = [self._short(name), *(self._short(lower) for lower in lowers)]
            empty = place / "empty"
            empty.mkdir(exist_ok=True)
            data = f"lowerdir={':'.join([*trees, str(empty)])}"
        else:
            (place / "work").mkdir(0o700, exist_ok=True)
            trees = [self._short(lower) for lower in lowers]
            data = f"lowerdir={':'.join(trees)},upperdir={name}/diff,workdir={name}/work"
        mount_overlay(merged, 0, data, str(self.home))

    def _below(self, name: str) -> list[str]:
        """Ids of the layers below, the topmost first."""
        found: list[str] = []
        while (file := self._place(name) / "parent").exists():
            name = file.read_text()
            found.append(name)
        return found

    def _tree(self, name: str) -> Path:
        """The layer's directory; of an image's bootstrap, where the image is mounted."""
        place = self._place(name)
        bootstrap = place / "diff" / BOOTSTRAP
        if bootstrap.is_symlink() or not bootstrap.is_file():
            return place / "diff"
        target = place / "rafs"
        if find_mount(target) is None:
            target.mkdir(0o755, exist_ok=True)
            request = {
                **self._image, "bootstrap": str(bootstrap), "mountpoint": str(target),
                "transport": "auto", "prefetch": "auto", "cache_limit": None, "source": name,
                "mount_namespace": mount_namespace(),
            }  # fmt: skip
            self._client.call_first("POST", "/v1/mounts", request)
        return target

    def _short(self, name: str) -> str:
        """The tree's name below ``home``."""
        link, tree = self._link(name), self._tree(name)
        target = os.path.relpath(tree, link.parent)
        if not link.is_symlink() or os.readlink(link) != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target)
        return f"l/{link.name}"

    def _link(self, name: str) -> Path:
        return self.home / "l" / (name[:_SHORT] + ("-init" if name.endswith("-init") else ""))

    def _umount(self, point: Path) -> None:
        if find_mount(point) is not None:
            with contextlib.suppress(MountpointError):
                umount(point, lazy=True)

    def _end(self, point: Path) -> None:
        if find_mount(point) is None:
            return
        try:
            self._client.call("DELETE", "/v1/mounts", mountpoint=str(point))
        except (NoDaemon, MountpointError) as e:
            log.warning("%s: %s", point, e)
            self._umount(point)

    def clean_up(self) -> None:
        """Docker ends: mounts of layers go, containers that live on have theirs."""
        if self._home is None:
            return
        with self._lock:
            for place in self._home.iterdir():
                self._umount(place / "merged")
                with contextlib.suppress(FscacheError):
                    self._end(place / "rafs")
            self._uses.clear()

    # -- contents

    def apply(self, name: str, tar: Source) -> int:
        return unpack(tar, self._place(name) / "diff")

    def diff(self, name: str, to: IO[bytes]) -> None:
        pack.pack(self._place(name) / "diff", to)

    def changes(self, name: str) -> list[dict[str, object]]:
        with self._lock:
            lowers = [self._tree(lower) for lower in self._below(name)]
        return pack.changes(self._place(name) / "diff", lowers)

    def size(self, name: str) -> int:
        return pack.size(self._place(name) / "diff")

    def status(self) -> list[list[str]]:
        return [["Backing", "EROFS mounts of nydus-fscache"], ["Home", str(self._home or "")]]
