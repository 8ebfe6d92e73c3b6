"""The document that ``status`` shows: a contract for scripts (docs/commands.md)."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from nydus_fscache.core.core import Core
from nydus_fscache.core.events import WAIT_BOUNDS_S
from nydus_fscache.fetch.cache_object import CacheObject
from nydus_fscache.fetch.objects import Objects
from rafs_v6.values import dataclass


@dataclass(frozen=True, slots=True)
class MountStatus:
    """The fields are the contract's.  ``mounted``: by us, and the kernel has it still;
    ``state``: "mounting", "mounted", "unmounted" (in use still) or "bound"; ``device``: of the file
    system, "major:minor", "" when it is not known; ``independent``: complete, and served by the
    kernel alone, whatever of ours dies."""

    mountpoint: str
    image: str
    bootstrap_digest: str
    transport: str
    fsid: str
    domain: str
    mounted: bool
    state: str
    device: str
    independent: bool
    backend: str
    blobs: list[str]


def status_document(
    mounts: Iterable[MountStatus], objects: Objects, core: Core, started_at: float
) -> dict[str, Any]:
    stats = core.stats()
    return {
        "uptime_s": round(time.monotonic() - started_at, 1),
        "mounts": [asdict(m) for m in mounts],
        "blobs": [_blob(obj) for obj in objects.all()],
        "requests": {
            "events": stats.events,
            "answered_in_c": stats.hits,
            "misses": stats.misses,
            "denied": stats.denied,
            "waiting": stats.pending,
            "oldest_s": round(stats.oldest_ns / 1e9, 3),
            "waits": {
                "bounds_s": list(WAIT_BOUNDS_S),
                "counts": list(stats.waits),
                "sum_s": round(stats.waits_ns / 1e9, 6),
            },
        },
        "event_loop": "io_uring" if stats.uses_uring else "poll",
    }


def _blob(obj: CacheObject) -> dict[str, Any]:
    counters = obj.counters
    return {
        "id": obj.source.blob_id,
        "name": obj.name,
        "size": obj.chunks.flat_size,
        "present": obj.bytes_present(),
        "complete": obj.complete,
        "fetched": counters.fetched,
        "reused": counters.reused,
        "recovered": counters.recovered,
        "requests": counters.requests,
        "errors": counters.errors,
        "last_error": counters.last_error,
        "reads": counters.times.document(),
        "verified_by": obj.chunks.digest_source,
    }
