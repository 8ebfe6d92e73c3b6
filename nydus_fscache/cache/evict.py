"""Keeps the cache in bounds: blobs that no image uses go, least recently used first.

Blobs come from eviction sources: our own files, here, and what transports have
(transport/cachefiles/kernel_cache.py).
Never touches what is bound: the kernel may read it at any time.  So a limit
below what is mounted cannot be kept; it is then kept again after the unmounts.
When a blob of ours was used last is the time stamp of its identity file, which is
renewed when it is opened and when it is let go.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from nydus_fscache.cache.blob_files import DATA, IDENTITY, SUFFIXES
from nydus_fscache.cache.chunk_index import NAME as INDEX
from nydus_fscache.log import event
from rafs_v6.values import dataclass

log = logging.getLogger("evict")

LOW_WATERMARK = 0.8  # of the limit: evict down to this, so that it is not done again at once
ROOM = 64 << 20  # to be free on a disk that was full, if there is so much to evict
ROOM_SHARE = 10  # but no more than the tenth part of a small disk


@dataclass(frozen=True, slots=True)
class Cached:
    """A blob on disk.  ``name``: the source's; no two sources have the same.  ``bytes``: what
    deleting it gives back."""

    name: str
    bytes: int
    last_used: float
    in_use: bool


class EvictionSource(Protocol):
    """A place where blobs lie."""

    def blobs(self) -> list[Cached]:
        """All that lies there."""
        ...

    def drop(self, names: Sequence[str]) -> list[str]:
        """Delete blobs, but none that is in use; the names of those that are gone."""
        ...

    def room_wanted(self) -> int:
        """Bytes that are to be free on the disk now, for there are too few; 0: it is well."""
        ...


_Found = list[tuple[Cached, EvictionSource]]


class OwnFiles:
    """Our cache files; ``Cached.name`` is the file name stem.

    ``in_use``: names that are open.  ``evict``: deletes a blob unless it is in use (then false);
    takes the lock that opening takes.
    """

    def __init__(
        self,
        directory: Path,
        in_use: Callable[[], Iterable[str]],
        evict: Callable[[str], bool],
    ) -> None:
        self._directory = directory
        self._in_use = in_use
        self._evict = evict

    def blobs(self) -> list[Cached]:
        used = set(self._in_use())
        sizes: dict[str, int] = {}  # by stem
        last_used: dict[str, float] = {}
        have_data: list[str] = []
        found: list[Cached] = []
        with os.scandir(self._directory) as entries:  # once: there may be 10^5 blobs
            for entry in entries:
                stem, suffix = _split(entry.name)
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    size = status.st_blocks * 512
                    if entry.name == INDEX:  # of use as long as there are blobs
                        found.append(Cached(INDEX, size, status.st_mtime, True))
                    sizes[stem] = sizes.get(stem, 0) + size
                    if suffix == DATA:
                        have_data.append(stem)
                    elif suffix == IDENTITY:
                        last_used[stem] = status.st_mtime
        blobs = (Cached(s, sizes[s], last_used.get(s, 0.0), s in used) for s in have_data)
        return [*blobs, *found]

    def drop(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if self._evict(name)]

    def room_wanted(self) -> int:
        return 0  # a write that finds no space says so by itself


def _split(name: str) -> tuple[str, str]:
    """(stem, suffix) of a file of a blob; of any other ("", "")."""
    for suffix in SUFFIXES:
        if name.endswith(f".{suffix}"):
            return name[: -len(suffix) - 1], suffix
    return "", ""


def touch(directory: Path, stem: str) -> None:
    """The blob of ours is used now."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(directory / f"{stem}.identity")


class Evictor:
    """``directory``: on the disk that must not be full."""

    def __init__(self, sources: Sequence[EvictionSource], directory: Path, limit: int = 0) -> None:
        self._sources = sources
        self._directory = directory
        self.limit = limit  # bytes; 0: none

    def keep_limit(self) -> int:
        """Above the limit (the high watermark): down to the low one.  Bytes that the cache takes
        now."""
        found = self._found()
        total = _total(found)
        if not self.limit or total <= self.limit:
            return total
        return int(self._shrink(found, int(self.limit * LOW_WATERMARK))["after"])

    def make_room(self, wanted: int = 0) -> None:
        """The disk was full a moment ago; others may have made room since.  ``wanted``: bytes
        that are to be free, if that is more than usual."""
        disk = os.statvfs(self._directory)
        usual = min(ROOM, disk.f_blocks * disk.f_frsize // ROOM_SHARE)
        missing = max(wanted, usual) - disk.f_bavail * disk.f_frsize
        if missing > 0:
            found = self._found()
            self._shrink(found, max(0, _total(found) - missing))

    def shrink(self, target: int, *, dry_run: bool = False) -> dict[str, Any]:
        """Evict until the cache takes ``target`` bytes, as far as blobs are unused."""
        return self._shrink(self._found(), target, dry_run=dry_run)

    def _shrink(self, found: _Found, target: int, *, dry_run: bool = False) -> dict[str, Any]:
        total = _total(found)
        chosen, excess = [], total - target
        for blob, source in sorted(found, key=lambda one: one[0].last_used):
            if excess > 0 and not blob.in_use:
                chosen.append((blob, source))
                excess -= blob.bytes
        if not dry_run:
            gone = {
                name
                for source in self._sources
                for name in source.drop([blob.name for blob, its in chosen if its is source])
            }
            chosen = [(blob, source) for blob, source in chosen if blob.name in gone]
        evicted = [blob for blob, _ in chosen]
        freed = sum(blob.bytes for blob in evicted)
        if evicted and not dry_run:
            log.info("evicted %d blobs, %d bytes", len(evicted), freed)
            event("evicted", blobs=len(evicted), bytes=freed)
        return {
            "dry_run": dry_run,
            "limit": self.limit,
            "before": total,
            "after": total - freed,
            "evicted": [
                {"name": b.name, "bytes": b.bytes, "last_used": b.last_used, "in_use": b.in_use}
                for b in evicted
            ],
        }

    def size(self) -> int:
        """Bytes on disk of all that is cached."""
        return _total(self._found())

    def _found(self) -> _Found:
        return [(blob, source) for source in self._sources for blob in source.blobs()]


def _total(found: _Found) -> int:
    return sum(blob.bytes for blob, _ in found)
