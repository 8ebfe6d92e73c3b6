"""An image also at its layer's own directory, where Docker 29 looks for it.

dockerd puts a snapshot of its own (``-init``) between an image and a container.  The snapshotter
looks for an image at the direct parent of a snapshot only, so such a container gets
``snapshots/<id>/fs`` for its lower directory, which holds the bootstrap and nothing else.  Here
that directory shows the image.  The bootstrap stays readable at ``fs/image/image.boot`` by a mount
below: an overlay takes a directory without what is mounted below it, so containers do not see it.

Guarantees: shown whole or not at all; a view that cannot be had changes nothing else; everything
is found out of the mount table, so a view outlives the process that made it.
Source: docs/nydusd.md, "Docker".
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from nydus_fscache.errors import FscacheError
from nydus_fscache.kernel import mountinfo
from nydus_fscache.kernel.mount import IMAGE_TYPES, umount
from nydus_fscache.kernel.mount_trees import bind
from nydus_fscache.kernel.overlay import READ_ONLY, mount_overlay

_BOOTSTRAP = ("fs", "image", "image.boot")
_KINDS = ("overlay", *IMAGE_TYPES)
_SPECIAL = frozenset(",:\\")  # of an overlay's options


def layer_of(point: Path, source: Path) -> Path | None:
    """The layer's directory of an image that nydus-snapshotter has mounted at ``point`` from the
    bootstrap ``source``; None when this is not one of its."""
    if source.parts[-len(_BOOTSTRAP):] != _BOOTSTRAP:
        return None
    snapshot = source.parents[len(_BOOTSTRAP) - 1]
    shared = snapshot.parent.parent / "mnt" / snapshot.name
    return snapshot / "fs" if point in (shared, snapshot / "mnt") else None


class LayerViews:
    """``work``: a directory for what is under way; its parent is there."""

    def __init__(self, work: Path, log: logging.Logger) -> None:
        self._work = work
        self._log = log
        self._can_stack: bool | None = None  # an overlay on an overlay on an image

    def show(self, point: Path, source: Path) -> None:
        """Returns when the view is there, or why it is not was logged."""
        layer = layer_of(point, source)
        if layer is None:
            return
        try:
            device = mountinfo.device_of(point)
            if _is_shown(layer, device):
                return
            hide(layer)
            if os.listdir(layer) != ["image"]:
                self._log.info("%s is not shown at %s, which holds other files", point, layer)
                return
            self._make(point, layer, device)
        except (FscacheError, OSError) as e:
            self._log.warning("%s is not shown at %s: %s", point, layer, e)

    def _make(self, point: Path, layer: Path, device: str) -> None:
        made = self._work / layer.parent.name
        view, lower, trial = made / "view", made / "lower", made / "trial"
        directories = (self._work, made, view, trial, lower, lower / "image")
        try:
            for directory in directories:
                directory.mkdir(mode=0o755, exist_ok=True)
            if (point / "image").is_dir() and not (point / "image").is_symlink():
                bind(point, view)
            elif os.path.lexists(point / "image"):
                raise FscacheError("the image has /image, which is not a directory")
            elif not self._stacks(point, lower, view, trial, device):
                return
            bind(layer / "image", view / "image", read_only=True)
            bind(view, layer, whole=True)
        finally:
            with contextlib.suppress(FscacheError):
                umount(view, lazy=True)
            for directory in reversed(directories[1:]):
                with contextlib.suppress(OSError):
                    directory.rmdir()

    def _stacks(self, point: Path, lower: Path, view: Path, trial: Path, device: str) -> bool:
        """Mount the overlay; can a container's one be put on it?  An overlay and a file system
        in files count as levels of which the kernel allows two, EROFS in files not always."""
        if _SPECIAL & set(f"{point}{lower}"):
            raise FscacheError("the path has a character that overlay options cannot hold")
        if self._can_stack is False:
            return False
        options = f"lowerdir={point}:{lower}"
        mount_overlay(view, READ_ONLY, options, source=_source(device))
        if self._can_stack is None:
            try:
                mount_overlay(trial, READ_ONLY, f"lowerdir={view}:{lower}")
                umount(trial)
                self._can_stack = True
            except FscacheError as e:
                self._can_stack = False
                self._log.warning("images are not shown at their layers (Docker 29): %s", e)
        return self._can_stack


def hide(layer: Path) -> None:
    """Whatever view of an image is at a layer's directory; containers that run on it go on."""
    while (found := mountinfo.find_mount(layer)) is not None and found.fstype in _KINDS:
        umount(layer, lazy=True)


def _is_shown(layer: Path, device: str) -> bool:
    found = mountinfo.find_mount(layer)
    return found is not None and (found.device == device or found.source == _source(device))


def _source(device: str) -> str:
    """Of the overlay over the image's mount with this device: what mountinfo shows of it."""
    return f"nydus-{device}"
