"""``localdisk``: blobs in the partitions of a disk, found by name in its GUID partition table.

A partition of the type "basic data" is named by the first 32 characters of its
blob's id; of any other type, name and GUID together are the id.
"""

from __future__ import annotations

import os
import threading
import time

from nydus_fscache.backend.base import Backend, RangeStream
from nydus_fscache.backend.gpt import BASIC_DATA, GptError, Partition, read_partitions
from nydus_fscache.backend.localfs import FileRange
from nydus_fscache.config.options import Options
from nydus_fscache.errors import BackendError, UsageError

_SHORT_ID = 32


class LocalDisk(Backend):
    """Config: ``device_path``."""

    name = "localdisk"

    def __init__(self, options: Options) -> None:
        path = options.text("device_path")
        no_table = options.flag("disable_gpt")
        options.end()
        if no_table:
            raise UsageError(
                "localdisk.disable_gpt leaves nothing that names the blobs", hint="remove it"
            )
        self._lock = threading.Lock()
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as e:
            raise BackendError(
                f"cannot open {path}: {e.strerror}", hint="check localdisk.device_path"
            ) from e
        try:
            self._blobs = _by_key(read_partitions(self._fd), path)
        except (GptError, OSError) as e:
            os.close(self._fd)
            raise BackendError(f"{path}: {e}", hint="see sgdisk --verify") from e
        except BaseException:
            os.close(self._fd)
            raise

    def _find(self, blob_id: str) -> Partition:
        found = self._blobs.get(blob_id) or self._blobs.get(blob_id[:_SHORT_ID])
        if found is None or (found.kind != BASIC_DATA and _key(found) != blob_id):
            raise BackendError(
                f"blob {blob_id}: no partition has that name", hint="see lsblk", status=404
            )
        return found

    def size(self, blob_id: str, *, deadline: float) -> int:
        """Of the partition, which may be larger than the blob."""
        return self._find(blob_id).size

    def open_range(
        self, blob_id: str, off: int, length: int, *, deadline: float, prefetch: bool
    ) -> RangeStream:
        partition = self._find(blob_id)
        if off + length > partition.size:
            raise BackendError(
                f"blob {blob_id}: {partition.size} bytes in its partition, {off + length} needed",
                hint="the partition is another blob's, or was made too small",
            )
        if time.monotonic() > deadline:
            raise BackendError(f"blob {blob_id}: not in time", retryable=True)
        with self._lock:
            if self._fd < 0:
                raise BackendError(f"blob {blob_id}: the disk is closed already")
            return FileRange(os.dup(self._fd), blob_id, partition.off + off, length)

    def close(self) -> None:
        """Streams that are open read on; a late one is an error, not another file's bytes."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _key(partition: Partition) -> str:
    if partition.kind == BASIC_DATA:
        return partition.name
    return partition.name + partition.guid.hex


def _by_key(partitions: list[Partition], path: str) -> dict[str, Partition]:
    blobs: dict[str, Partition] = {}
    for partition in partitions:
        key = _key(partition)
        if not key or key in blobs:
            raise BackendError(
                f"{path}: a partition's name is {'used twice' if key else 'missing'}: {key!r}",
                hint="each partition must be named by its blob",
            )
        blobs[key] = partition
    return blobs
