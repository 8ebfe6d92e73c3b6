"""What a call of the API asks for, checked: the daemon behind it need not doubt it any more.

Raises ``UsageError``, ``MountpointError`` or ``BadImage``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nydus_fscache.cache.store import Store
from nydus_fscache.config.tuning import tuning_of
from nydus_fscache.errors import BadImage, MountpointError, UsageError
from nydus_fscache.fetch.prefetch import POLICIES
from nydus_fscache.kernel.mountinfo import find_mount

MAX_BOOTSTRAP = 1 << 30


@dataclass(frozen=True, slots=True)
class WantedImage:
    """``bootstrap``: its bytes; ``source``: what to show for the image."""

    bootstrap: bytes
    backend: dict[str, Any]
    tuning: dict[str, Any]
    source: str


def size_of(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UsageError(f"{name} is {value!r}", hint="a number of bytes")
    return value


def policy_of(request: dict[str, Any], default: str) -> str:
    policy = str(request.get("prefetch") or default)
    if policy not in POLICIES:
        raise UsageError(f"no prefetch {policy!r}", hint=f"one of {', '.join(POLICIES)}")
    return policy


def paths_of(request: dict[str, Any]) -> list[str]:
    paths = request.get("paths") or []
    if not isinstance(paths, list) or not all(isinstance(p, str) for p in paths):
        raise UsageError("paths is no list of strings")
    return paths


def digest_of(text: str) -> str:
    """The hexadecimal part of a sha256, which may have its prefix."""
    digest = text.removeprefix("sha256:")
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise UsageError(f"{digest!r} is no sha256")
    return digest


def mountpoint_of(request: dict[str, Any], store: Store) -> Path:
    """A free directory whose mount does not hide the cache."""
    path = Path(str(request.get("mountpoint", "")))
    if not path.is_absolute():
        raise UsageError(f"mountpoint {path} is not absolute")
    if not path.is_dir():
        missing = "does not exist" if not path.exists() else "is not a directory"
        raise MountpointError(f"mountpoint {path} {missing}", hint=f"mkdir -p {path}")
    if find_mount(path) is not None:
        raise MountpointError(f"mountpoint {path} is busy", hint=f"nydus-fscache umount {path}")
    real, root = Path(os.path.realpath(path)), Path(os.path.realpath(store.root))
    if root.is_relative_to(real) or any(
        real.is_relative_to(d) for d in (*_caches(store), Path(os.path.realpath(store.images)))
    ):
        raise UsageError(f"{path} would hide the daemon's own files", hint="mount it elsewhere")
    return path


def image_of(request: dict[str, Any], store: Store, mounted: Collection[str]) -> WantedImage:
    """``mounted``: mountpoints of this daemon, which cannot be where the image comes from."""
    path, backend = request.get("bootstrap"), request.get("backend")
    tuning = request.get("tuning") or {}
    if not isinstance(path, str) or not isinstance(backend, dict):
        raise UsageError("a request needs bootstrap (path) and backend (object)")
    for read in [path, *_paths_in(backend)]:
        _check_apart(read, store, mounted)
    if not isinstance(tuning, dict):
        raise UsageError("tuning is no object")
    tuning_of(tuning, "tuning")
    source = str(request.get("source") or path)
    return WantedImage(_read_bootstrap(path), backend, tuning, source)


def _read_bootstrap(path: str) -> bytes:
    try:
        with open(path, "rb") as f:
            # by its size: read(n) sets aside n bytes, and a small machine has no GiB
            data = f.read(min(os.fstat(f.fileno()).st_size, MAX_BOOTSTRAP) + 1)
    except OSError as e:
        raise BadImage(f"cannot read {path}: {e.strerror}", hint="name a bootstrap") from e
    if len(data) > MAX_BOOTSTRAP:
        raise BadImage(f"{path} is larger than {MAX_BOOTSTRAP} bytes", hint="no bootstrap is")
    return data


def _check_apart(path: str, store: Store, mounted: Collection[str]) -> None:
    """What the daemon reads must not come out of its own cache, or a mount of its own: it
    would wait for itself."""
    real = Path(os.path.realpath(path))
    if any(real.is_relative_to(d) for d in _caches(store)):
        raise UsageError(f"{path} is in the cache", hint="name the place of the image's blobs")
    with contextlib.suppress(OSError, ValueError):
        device = real.stat().st_dev
        if any(os.stat(point).st_dev == device for point in mounted):
            raise UsageError(f"{path} is on a mount of this daemon", hint="copy it to a disk first")


def _caches(store: Store) -> list[Path]:
    """The directories whose files the kernel fills and reads for a mount."""
    return [Path(os.path.realpath(d)) for d in (store.blobs.directory, store.cachefiles)]


def _paths_in(config: Any) -> list[str]:
    """All that may be a path in a backend's configuration."""
    if isinstance(config, str):
        return [config] if config.startswith("/") else []
    values = config.values() if isinstance(config, dict) else config
    return [p for v in values for p in _paths_in(v)] if isinstance(values, Iterable) else []
