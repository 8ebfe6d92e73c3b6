"""Access traces: in which order an image's data were first wanted after its mount.

Per bootstrap digest, in ``images/<digest>.trace`` (JSON), so that every mount of
the same image on this node profits.  Bounded in number and in time: what is read
long after the start is no order to prefetch in.  A new run appends what it wanted
and the last did not; a trace that cannot be read counts as none.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from nydus_fscache.core.core import Core
from nydus_fscache.core.events import TraceEntry
from nydus_fscache.fetch.cache_object import CacheObject
from nydus_fscache.files import replace_file
from rafs_v6.values import dataclass

log = logging.getLogger("trace")

VERSION = 1
MAX_ACCESSES = 16384  # per image
RECORD_NS = 120 * 10**9  # from the first access after a mount
EVENTS = 16384  # room between two collections; what exceeds it is not recorded
SAVE_EVERY_S = 5.0
_READ = 4096


@dataclass(frozen=True, slots=True)
class Access:
    """Unit ``unit`` of blob ``blob`` was first wanted ``t_ms`` after the first of its run.

    It holds ``count`` chunks from ``chunk`` on: what a bootstrap alone can place.
    """

    blob: str
    unit: int
    t_ms: int
    chunk: int
    count: int


def load(path: Path) -> list[Access]:
    """What is recorded; empty when there is nothing that can be used."""
    try:
        document = json.loads(path.read_text())
        if document["version"] != VERSION:
            return []
        rows = document["accesses"][:MAX_ACCESSES]
        return [Access(str(blob), *map(int, numbers)) for blob, *numbers in rows]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as e:
        log.warning("trace %s is ignored: %s", path, e)
        return []


@dataclass(slots=True)
class _Recording:
    """Of one image, since its mount."""

    path: Path
    objects: dict[int, CacheObject]
    accesses: list[Access]
    seen: set[tuple[str, int]]
    start_ns: int = 0
    saved_at: float = field(default_factory=time.monotonic)
    changed: bool = False

    def add(self, entry: TraceEntry) -> None:
        obj = self.objects.get(entry.object)
        if obj is None:
            return
        if not self.start_ns:
            self.start_ns = entry.t_ns
        since = entry.t_ns - self.start_ns
        if since > RECORD_NS:
            return
        length = min(entry.len, obj.chunks.flat_size - entry.off)
        if length <= 0:
            return
        blob = obj.source.blob_id
        for unit in obj.chunks.units_of(entry.off, length):
            if (blob, unit) not in self.seen and len(self.accesses) < MAX_ACCESSES:
                self.seen.add((blob, unit))
                record = obj.chunks.blob.units[unit]
                t_ms = max(0, since) // 10**6
                self.accesses.append(Access(blob, unit, t_ms, record.first, record.count))
                self.changed = True

    def save(self) -> None:
        rows = [[a.blob, a.unit, a.t_ms, a.chunk, a.count] for a in self.accesses]
        content = json.dumps({"version": VERSION, "accesses": rows})
        replace_file(self.path, content.encode())
        self.changed = False
        self.saved_at = time.monotonic()


@dataclass(slots=True)
class Tracer:
    """Collects what the C core saw, for every image that is being recorded.  Thread-safe."""

    core: Core
    directory: Path
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _recordings: dict[str, _Recording] = field(default_factory=dict)

    def path(self, digest: str) -> Path:
        return self.directory / f"{digest}.trace"

    def watch(self, digest: str, objects: Iterable[CacheObject]) -> list[Access]:
        """The image was mounted (again): record it; what was recorded so far."""
        with self._lock:
            if not self._recordings:
                self.core.trace(EVENTS)
            self._drain()
            known = self._recordings.get(digest)
            accesses = known.accesses if known else load(self.path(digest))
            self._recordings[digest] = _Recording(
                self.path(digest),
                {obj.oid: obj for obj in objects},
                accesses,
                {(a.blob, a.unit) for a in accesses},
                changed=bool(known and known.changed),
            )
            return list(accesses)

    def unwatch(self, digest: str) -> None:
        with self._lock:
            self._drain()
            recording = self._recordings.pop(digest, None)
            if recording is not None and recording.changed:
                self._save(recording)
            if not self._recordings:
                self.core.trace(0)

    def collect(self) -> None:
        """Regularly; saved now and then, as that costs more than collecting."""
        with self._lock:
            if self._recordings:
                self._drain()
            now = time.monotonic()
            for recording in self._recordings.values():
                if recording.changed and now - recording.saved_at >= SAVE_EVERY_S:
                    self._save(recording)

    def _drain(self) -> None:
        while entries := self.core.read_trace(_READ):
            for entry in entries:
                for recording in self._recordings.values():
                    recording.add(entry)

    def _save(self, recording: _Recording) -> None:
        try:
            recording.save()
        except OSError as e:  # a full disk: the next collection tries again
            log.warning("trace %s is not saved: %s", recording.path, e)

    def document(self, digest: str) -> dict[str, Any]:
        with self._lock:
            if self._recordings:
                self._drain()
            known = self._recordings.get(digest)
            accesses = list(known.accesses) if known else load(self.path(digest))
        return as_document(digest, accesses)


def as_document(digest: str, accesses: Iterable[Access]) -> dict[str, Any]:
    rows = [asdict(a) for a in accesses]
    return {"bootstrap_digest": f"sha256:{digest}", "accesses": rows}
