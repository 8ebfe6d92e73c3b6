"""What a call of the API asks for, checked: the daemon behind it need not doubt it any more.

Raises ``UsageError``, ``MountpointError`` or ``BadImage``.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import rafs_v6
from nydus_fscache.cache.store import Store
from nydus_fscache.config.tuning import tuning_of
from nydus_fscache.errors import BadImage, MountpointError, UsageError
from nydus_fscache.fetch.wanted import POLICIES
from nydus_fscache.image.bootstraps import Pieces
from rafs_v6.reader.locate import standalone_bootstrap
from rafs_v6.values import dataclass

MAX_BOOTSTRAP = 1 << 30
_PIECE = 4 << 20  # of a bootstrap, in memory at once
# a service that is started anew needs them
_PROGRAM = (
    sys.prefix,
    sys.base_prefix,
    os.path.realpath(sys.executable),
    str(Path(__file__).parents[2]),
)


@dataclass(frozen=True, slots=True)
class WantedImage:
    """``bootstrap``: its path; ``source``: what to show for the image."""

    bootstrap: str
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


def mountpoint_of(request: dict[str, Any], store: Store, read: Iterable[str]) -> Path:
    """A directory, its path resolved, whose mount hides neither what the daemon needs nor
    ``read``, the files and directories that backends read."""
    asked = str(request.get("mountpoint", ""))
    if not os.path.isabs(asked):
        raise UsageError(
            f"mountpoint {asked!r} is not absolute", hint="name a directory by its path"
        )
    point = Path(os.path.realpath(asked))
    if not point.exists():
        raise MountpointError(f"mountpoint {asked} does not exist", hint=f"mkdir -p {asked}")
    if not point.is_dir():
        raise MountpointError(f"mountpoint {asked} is not a directory", hint="name a directory")
    inside = (*_caches(store), Path(os.path.realpath(store.images)))
    ours = (os.path.realpath(store.root), *_PROGRAM)
    if any(Path(o).is_relative_to(point) for o in ours) or any(
        point.is_relative_to(d) for d in inside
    ):
        raise UsageError(f"{asked} would hide the daemon's own files", hint="mount it elsewhere")
    for path in dict.fromkeys(read):  # many mounts read the same
        if Path(os.path.realpath(path)).is_relative_to(point):
            raise UsageError(
                f"a mount at {asked} would hide {path}, which an image is read from",
                hint="mount it elsewhere",
            )
    return point


def image_of(request: dict[str, Any], store: Store, devices: Collection[str]) -> WantedImage:
    """``devices``: of the mounts of this daemon, which an image cannot come from."""
    path, backend = request.get("bootstrap"), request.get("backend")
    tuning = request.get("tuning") or {}
    if not isinstance(path, str) or not isinstance(backend, dict):
        raise UsageError("a request needs bootstrap (path) and backend (object)")
    for read in [path, *paths_in(backend)]:
        _check_apart(read, store, devices)
    if not isinstance(tuning, dict):
        raise UsageError("tuning is not an object")
    tuning_of(tuning, "tuning")
    source = str(request.get("source") or path)
    return WantedImage(path, backend, tuning, source)


@contextlib.contextmanager
def open_bootstrap(path: str) -> Iterator[tuple[int, Pieces]]:
    """Its size, and its bytes; of a blob that has one inside, those."""
    with _read_errors(path):
        # a pipe or a terminal would have us wait for a writer
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        with _read_errors(path):
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise BadImage(f"{path} is not a regular file", hint="name a bootstrap")
            inside = _inside_blob(Path(path))
        if inside is not None:
            yield len(inside), lambda: [inside]
            return
        if status.st_size > MAX_BOOTSTRAP:
            raise _too_large(path)
        yield status.st_size, lambda: _pieces(fd, path, status.st_size)
    finally:
        os.close(fd)


def _pieces(fd: int, path: str, size: int) -> Iterator[memoryview]:
    """In memory that goes back to the system: of a bytearray, the allocator would keep 4 MiB for
    each thread that a call has had."""
    buffer, at = memoryview(mmap.mmap(-1, min(_PIECE, max(size, 1)))), 0
    while True:
        with _read_errors(path):
            count = os.preadv(fd, [buffer], at)
        if not count:
            return
        at += count
        if at > MAX_BOOTSTRAP:  # it grows
            raise _too_large(path)
        yield buffer[:count]


@contextlib.contextmanager
def _read_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise BadImage(f"cannot read {path}: {e.strerror}", hint="name a bootstrap") from e


def _too_large(path: str) -> BadImage:
    return BadImage(f"{path} is larger than {MAX_BOOTSTRAP} bytes", hint="no bootstrap is")


def _inside_blob(path: Path) -> bytes | None:
    """The bootstrap inside a blob, as one that stands alone; None of any other file, which is
    looked at when it is loaded."""
    try:
        return standalone_bootstrap(path)
    except rafs_v6.ImageError:
        return None


def _check_apart(path: str, store: Store, devices: Collection[str]) -> None:
    """What the daemon reads must not come out of its own cache, or a mount of its own: it
    would wait for itself."""
    real = Path(os.path.realpath(path))
    if any(real.is_relative_to(d) for d in _caches(store)):
        raise UsageError(f"{path} is in the cache", hint="name the place of the image's blobs")
    with contextlib.suppress(OSError, ValueError):
        device = real.stat().st_dev
        if f"{os.major(device)}:{os.minor(device)}" in devices:
            raise UsageError(f"{path} is on a mount of this daemon", hint="copy it to a disk first")


def _caches(store: Store) -> list[Path]:
    """The directories whose files the kernel fills and reads for a mount."""
    return [Path(os.path.realpath(d)) for d in (store.blobs.directory, store.cachefiles)]


def paths_in(config: Any) -> list[str]:
    """All that may be a path in a backend's configuration."""
    if isinstance(config, str):
        return [config] if config.startswith("/") else []
    values = config.values() if isinstance(config, dict) else config
    return [p for v in values for p in paths_in(v)] if isinstance(values, Iterable) else []
