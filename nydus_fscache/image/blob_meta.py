"""Metadata of blobs (CCT, TOC, digests) as they were read, kept beside the bootstrap.

A successor must be able to serve readers while the backend is away, and a
second mount should not ask the network for what the first one read.  The bytes
are kept as stored with their sha256 behind them, so that damage is noticed; whoever
reads them validates them again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from nydus_fscache.backend.base import Backend
from nydus_fscache.errors import BackendError
from nydus_fscache.files import remove, replace_file
from rafs_v6.sha256 import sha256

log = logging.getLogger("meta")

META_DEADLINE_S = 30.0
_SUM = 32  # bytes of a sha256


class MetaReader:
    """``read_at`` and ``size`` of ``rafs_v6.ChunkMap.load``, cached in ``directory``.

    For one thread; the directory may be shared with others.
    """

    def __init__(self, backend: Backend, directory: Path, *, may_ask: bool) -> None:
        """``may_ask``: or is what is not cached a ``BackendError``?"""
        self._backend = backend
        self._may_ask = may_ask
        self._directory = directory
        self.used_cache = False
        with contextlib.suppress(OSError):
            os.utime(directory)  # used now

    def forget(self, blob_id: str) -> bool:
        """What is known of the blob does not validate, and is asked for again the next time.  Did
        any of it come from the cache?"""
        used, self.used_cache = self.used_cache, False
        for path in self._directory.glob(f"{blob_id}.*"):
            with contextlib.suppress(OSError):
                remove(path)
        return used

    def read_at(self, blob_id: str, off: int, length: int) -> bytes:
        return self._cached(
            f"{blob_id}.{off}.{length}",
            lambda: self._backend.read(
                blob_id, off, length, deadline=time.monotonic() + META_DEADLINE_S
            ),
        )

    def size(self, blob_id: str) -> int:
        def ask() -> bytes:
            deadline = time.monotonic() + META_DEADLINE_S
            return str(self._backend.size(blob_id, deadline=deadline)).encode()

        return int(self._cached(f"{blob_id}.size", ask))

    def _cached(self, name: str, ask: Callable[[], bytes]) -> bytes:
        path = self._directory / name
        with contextlib.suppress(OSError):
            stored = path.read_bytes()
            if sha256(stored[:-_SUM]).digest() == stored[-_SUM:]:
                self.used_cache = True
                return stored[:-_SUM]
            log.warning("%s is damaged: read again", path)
        if not self._may_ask:
            raise BackendError(f"{name} is not cached", retryable=True)
        data = ask()
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            replace_file(path, data + sha256(data).digest(), durable=False)
        except OSError as e:  # the next mount asks again
            log.warning("%s is not kept: %s", path, e)
        return data
