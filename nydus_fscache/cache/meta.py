"""Metadata of blobs (CCT, TOC, digests) as they were read, kept beside the bootstrap.

A successor must be able to serve readers while the backend is away, and a
second mount should not ask the network for what the first one read.  The bytes
are kept as stored; whoever reads them validates them again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from pathlib import Path

from nydus_fscache.backend.base import Backend
from nydus_fscache.cache.presence import open_state_file

log = logging.getLogger("meta")

META_DEADLINE_S = 30.0


class MetaReader:
    """``read_at`` and ``size`` of ``rafs_v6.ChunkMap.load``, cached in ``directory``."""

    def __init__(self, backend: Backend, directory: Path) -> None:
        self._backend = backend
        self._directory = directory
        self.asked_backend = False

    def forget(self) -> None:
        """What is cached does not validate: fetch it anew."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def read_at(self, blob_id: str, off: int, length: int) -> bytes:
        path = self._directory / f"{blob_id}.{off}.{length}"
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            if len(data) == length:
                return data
        self.asked_backend = True
        data = self._backend.read(
            blob_id, off, length, deadline=time.monotonic() + META_DEADLINE_S
        )
        self._write(path, data)
        return data

    def size(self, blob_id: str) -> int:
        path = self._directory / f"{blob_id}.size"
        with contextlib.suppress(OSError, ValueError):
            return int(path.read_text())
        self.asked_backend = True
        size = self._backend.size(blob_id, deadline=time.monotonic() + META_DEADLINE_S)
        self._write(path, str(size).encode())
        return size

    def _write(self, path: Path, data: bytes) -> None:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        temporary = path.with_name(f".{os.getpid()}.{path.name}")
        with os.fdopen(open_state_file(temporary), "wb") as f:
            f.write(data)
        temporary.rename(path)
