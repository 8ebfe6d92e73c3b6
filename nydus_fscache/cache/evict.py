"""Keeps the cache in bounds: blobs that no image uses go, least recently used first.

Never touches what is bound: the kernel may read it at any time.  So a limit
below what is mounted cannot be kept; it is then kept again after the unmounts.
When a blob was used last is the time stamp of its identity file, which is
renewed when it is opened and when it is let go.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger("evict")

LOW_WATERMARK = 0.8  # of the limit: evict down to this, so that it is not done again at once
ROOM = 64 << 20  # to be free on a disk that was full, if there is so much to evict
ROOM_SHARE = 10  # but no more than the tenth part of a small disk

_DATA = ".blob.data"
_COMPANIONS = ("blob.data.chunk_map", "blob.meta", "identity")


@dataclass(frozen=True, slots=True)
class Cached:
    """A blob on disk, by file name stem.  ``bytes``: what deleting it gives back."""

    name: str
    bytes: int
    last_used: float
    in_use: bool


def cached_blobs(directory: Path, in_use: Iterable[str]) -> list[Cached]:
    """Least recently used first."""
    used = set(in_use)
    found = []
    for data in directory.glob(f"*{_DATA}"):
        stem = data.name.removesuffix(_DATA)
        size, last = 0, 0.0
        for path in (data, *(directory / f"{stem}.{s}" for s in _COMPANIONS)):
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            size += status.st_blocks * 512
            if path.suffix == ".identity":
                last = status.st_mtime
        found.append(Cached(stem, size, last, stem in used))
    return sorted(found, key=lambda blob: blob.last_used)


def touch(directory: Path, stem: str) -> None:
    """The blob is used now."""
    with contextlib.suppress(FileNotFoundError):
        os.utime(directory / f"{stem}.identity")


def to_evict(blobs: Iterable[Cached], excess: int) -> list[Cached]:
    """The first unused ones whose sizes add up to ``excess``."""
    chosen: list[Cached] = []
    for blob in blobs:
        if excess <= 0:
            break
        if not blob.in_use:
            chosen.append(blob)
            excess -= blob.bytes
    return chosen


class Evictor:
    """``evict``: deletes a blob unless it is in use (then false); takes the lock that opening
    takes.  ``in_use``: names that are open."""

    def __init__(
        self,
        directory: Path,
        in_use: Callable[[], Iterable[str]],
        evict: Callable[[str], bool],
        limit: int = 0,
    ) -> None:
        self._directory = directory
        self._in_use = in_use
        self._evict = evict
        self.limit = limit  # bytes; 0: none

    def keep_limit(self) -> None:
        """Above the limit (the high watermark): down to the low one."""
        if self.limit:
            blobs = cached_blobs(self._directory, self._in_use())
            if sum(blob.bytes for blob in blobs) > self.limit:
                self.shrink(int(self.limit * LOW_WATERMARK))

    def make_room(self) -> None:
        """The disk was full a moment ago; others may have made room since."""
        disk = os.statvfs(self._directory)
        wanted = min(ROOM, disk.f_blocks * disk.f_frsize // ROOM_SHARE)
        missing = wanted - disk.f_bavail * disk.f_frsize
        if missing > 0:
            total = sum(b.bytes for b in cached_blobs(self._directory, self._in_use()))
            self.shrink(max(0, total - missing))

    def shrink(self, target: int, *, dry_run: bool = False) -> dict[str, Any]:
        """Evict until the cache takes ``target`` bytes, as far as blobs are unused."""
        blobs = cached_blobs(self._directory, self._in_use())
        total = sum(blob.bytes for blob in blobs)
        chosen = to_evict(blobs, total - target)
        if not dry_run:
            chosen = [blob for blob in chosen if self._evict(blob.name)]
        freed = sum(blob.bytes for blob in chosen)
        if chosen and not dry_run:
            log.info("evicted %d blobs, %d bytes", len(chosen), freed)
        return {
            "dry_run": dry_run,
            "limit": self.limit,
            "before": total,
            "after": total - freed,
            "evicted": [asdict(blob) for blob in chosen],
        }
