"""The documents of nydusd's API, as pure functions of values.

Shapes are those of nydusd 2.4 (docs/nydusd.md, "API").  Counters that only nydusd's own FUSE
server could know (operations by kind, their latency) are 0 here: the kernel serves them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nydus_fscache
from nydus_fscache.fetch.read_times import ReadTimes

Document = dict[str, Any]

# The snapshotter compares the commit of `nydusd --version` with the running daemon's: both are
# this string, so that an upgrade happens exactly when the version changes.
COMMIT = f"nydus-fscache-{nydus_fscache.__version__}"
VERSION = {
    "package_ver": f"v{nydus_fscache.__version__}",
    "git_commit": COMMIT,
    "build_time": "unknown",
    "profile": "release",
    "rustc": "none (nydus-fscache)",
}
VERSION_TEXT = (
    f"Version: \t{VERSION['package_ver']}\nGit Commit: \t{COMMIT}\n"
    f"Build Time: \t{VERSION['build_time']}\nProfile: \t{VERSION['profile']}\n"
    f"Rustc: \t\t{VERSION['rustc']}\n"
)

_BUCKETS, _OPERATIONS = 8, 15
_SUPER_OFFSET = 1024
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SECOND = 1_000_000_000  # nanoseconds
MAX_ERRORS, MAX_ERRORS_SIZE = 500, 51200


def error(message: str) -> Document:
    return {"code": "UNDEFINED", "message": message}


def daemon_info(
    instance: str | None, supervisor: str | None, state: str, backends: Document | None
) -> Document:
    """``backends``: of version 1 of the API; None where there are none."""
    return {
        "version": VERSION,
        "id": instance,
        "supervisor": supervisor,
        "state": state,
        "backend_collection": backends,
    }


def backend_entry(mountpoint: str, mounted_at: float, config: Document | None) -> Document:
    """An element of ``backend_collection``.  ``config``: as ``config.version_2`` shows it."""
    seconds, rest = divmod(int(mounted_at * _SECOND), _SECOND)
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    return {
        "backend_type": "Rafs",
        "mountpoint": mountpoint,
        "mounted_time": f"{stamp}.{rest:09} +00:00:00",
        "config": config,
    }


def fs_metrics(mountpoint: str) -> Document:
    """Of files and operations; see this module's docstring."""
    return {
        "files_account_enabled": False,
        "access_pattern_enabled": False,
        "record_latest_read_files_enabled": False,
        "measure_latency": True,
        "id": mountpoint,
        "nr_opens": 0,
        "data_read": 0,
        "block_count_read": [0] * _BUCKETS,
        "fop_hits": [0] * _OPERATIONS,
        "fop_errors": [0] * _OPERATIONS,
        "fop_cumulative_latency_total": [0] * _OPERATIONS,
        "read_latency_dist": [0] * _BUCKETS,
    }


def backend_metrics(kind: str, blobs: Iterable[Mapping[str, Any]]) -> Document:
    """``blobs``: elements of ``status``'s ``blobs`` (docs/commands.md)."""
    found = list(blobs)
    cells = [[0] * _BUCKETS for _ in range(_BUCKETS)]
    for blob in found:
        for size, millis, count in _reads(blob)["classes"]:
            cells[size][millis] += count
    return {
        "backend_type": kind,
        "read_count": sum(int(blob["requests"]) for blob in found),
        "read_errors": sum(int(blob["errors"]) for blob in found),
        "read_amount_total": sum(int(blob["fetched"]) for blob in found),
        "read_cumulative_latency_millis_total": sum(_reads(blob)["ms"] for blob in found),
        "read_cumulative_latency_millis_dist": [sum(column) for column in zip(*cells, strict=True)],
        "read_count_block_size_dist": [sum(row) for row in cells],
        "read_latency_sizes_dist": cells,
    }


def _reads(blob: Mapping[str, Any]) -> Document:
    """Of a blob that is not open, or of a daemon that does not say, there are none."""
    return dict(blob.get("reads") or ReadTimes().document())


def blobcache_metrics(store: str, blobs: Iterable[Mapping[str, Any]]) -> Document:
    """``underlying_files`` names every blob of the image, opened yet or not: the snapshotter
    deletes the files of blobs that no image lists.  Hits of the cache are answered in the kernel
    or in C and counted nowhere by blob, so ``total`` counts the requests that missed."""
    found = list(blobs)
    reads = [_reads(blob) for blob in found]
    began = min((read["began"] for read in reads if read["began"]), default=0.0)
    ended = max((read["ended"] for read in reads), default=0.0)
    return {
        "underlying_files": [f"{blob['id']}.blob.data" for blob in found],
        "store_path": store,
        "partial_hits": 0,
        "whole_hits": 0,
        "total": sum(int(blob["requests"]) for blob in found),
        "entries_count": len(found),
        "prefetch_data_amount": sum(read["prefetched"] for read in reads),
        "prefetch_requests_count": sum(read["prefetches"] for read in reads),
        "prefetch_workers": 0,
        "prefetch_unmerged_chunks": 0,
        "prefetch_cumulative_time_millis": sum(read["prefetch_ms"] for read in reads),
        "prefetch_begin_time_secs": int(began),
        "prefetch_begin_time_millis": int(began * 1000) % 1000,
        "prefetch_end_time_secs": int(ended),
        "prefetch_end_time_millis": int(ended * 1000) % 1000,
        "buffered_backend_size": sum(int(blob["present"]) for blob in found),
        "data_all_ready": bool(found) and all(blob["complete"] for blob in found),
    }


class ErrorRing:
    """The last errors, of bounded number and size, as ``/api/v1/daemon/events`` shows them."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque()
        self._size = 0
        self._total_errors = 0
        self._total_size = 0

    def add(self, text: str) -> None:
        now = time.gmtime()
        day, month = _DAYS[now.tm_wday], _MONTHS[now.tm_mon - 1]  # of HTTP, in no other language
        date = time.strftime(f"{day}, %d {month} %Y %H:%M:%S GMT", now)
        line = f"{date} - {text}"[:MAX_ERRORS_SIZE]
        self._errors.append(line)
        self._size += len(line)
        self._total_errors += 1
        self._total_size += len(line)
        while len(self._errors) > MAX_ERRORS or self._size > MAX_ERRORS_SIZE:
            self._size -= len(self._errors.popleft())

    def document(self) -> Document:
        return {
            "max_errors": MAX_ERRORS,
            "total_errors": self._total_errors,
            "max_size": MAX_ERRORS_SIZE,
            "total_size": self._total_size,
            "errors": list(self._errors),
        }


def super_block(path: Path) -> Document:
    """What ``GET /api/v1/daemon/backend`` says of the bootstrap at ``path``; reads its first
    blocks alone.  Raises ``ImageError`` or ``OSError``."""
    from rafs_v6.format.erofs import ExtSuperBlock, SuperBlock  # noqa: PLC0415 - start-up time

    with path.open("rb") as file:
        file.seek(_SUPER_OFFSET)
        found = SuperBlock.unpack(file.read(SuperBlock.SIZE))
        ext = ExtSuperBlock.unpack(file.read(ExtSuperBlock.SIZE))
    timeout = {"secs": 1 << 32, "nanos": 0}  # for ever
    return {
        "magic": found.magic,
        "version": 0x600,
        "sb_size": 0,
        "root_inode": 0,
        "chunk_size": ext.chunk_size,
        "batch_size": 0,
        "inodes_count": found.inos,
        "flags": {"bits": ext.flags},
        "inode_table_entries": 0,
        "inode_table_offset": 0,
        "blob_table_size": ext.blob_table_size,
        "blob_table_offset": ext.blob_table_offset,
        "extended_blob_table_offset": 0,
        "extended_blob_table_entries": 0,
        "blob_device_table_count": found.extra_devices,
        "blob_device_table_offset": found.devt_slotoff * 128,
        "prefetch_table_offset": ext.prefetch_table_offset,
        "prefetch_table_entries": ext.prefetch_table_size // 4,
        "attr_timeout": timeout,
        "entry_timeout": timeout,
        "is_chunk_dict": False,
        "meta_blkaddr": found.meta_blkaddr,
        "root_nid": found.root_nid,
        "chunk_table_offset": ext.chunk_table_offset,
        "chunk_table_size": ext.chunk_table_size,
    }


def blobs_of(status: Document, mounts: Iterable[Document]) -> list[Document]:
    """Of each blob of these mounts of ``status``, its element of ``blobs``; zeros for one that
    was not opened yet."""
    known = {blob["id"]: blob for blob in status["blobs"]}
    wanted = dict.fromkeys(blob for mount in mounts for blob in mount["blobs"])
    return [known.get(blob) or _unopened_blob(blob) for blob in wanted]


def _unopened_blob(blob_id: str) -> Document:
    """As an element of ``status``'s ``blobs``."""
    counters = dict.fromkeys(("size", "present", "fetched", "requests", "errors"), 0)
    return {"id": blob_id, "complete": False, **counters}


def fsid_of_snapshot(snapshot: str) -> str:
    """The fsid that nydus-snapshotter gives the image of a snapshot."""
    import hashlib  # noqa: PLC0415 - OpenSSL, which fronts of FUSE mounts do without

    return hashlib.sha256(f"nydus-snapshot-{snapshot}".encode()).hexdigest()
