"""Blobs where a backend has them: what ``check`` and ``copy`` read beside a registry."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from nydus_fscache.backend.base import Backend
from nydus_fscache.backend.make import make_backend
from nydus_fscache.errors import BackendError
from nydus_fscache.registry.store import BlobStream, BlobWriter

_PATIENCE_S = 120.0
_LONGEST_S = 24 * 3600.0


def readable_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of the original's, those that have a meaning here."""
    return {k: v for k, v in options.items() if k != "checksum_algorithm"}


class BackendBlobs:
    """A ``BlobStore`` that is only read."""

    def __init__(self, kind: str, options: dict[str, Any]) -> None:
        self._backend: Backend = make_backend({"type": kind, kind: readable_options(options)})

    def close(self) -> None:
        self._backend.close()

    def has_blob(self, digest: str) -> int | None:
        try:
            return self._backend.size(_hex(digest), deadline=time.monotonic() + _PATIENCE_S)
        except BackendError as e:
            if e.status == 404:
                return None
            raise

    def open_blob(self, digest: str, size: int) -> BlobStream:
        deadline = time.monotonic() + _LONGEST_S
        return self._backend.open_range(
            _hex(digest), 0, size, deadline=deadline, prefetch=False
        )

    def read_at(self, digest: str, off: int, length: int) -> bytes:
        deadline = time.monotonic() + _PATIENCE_S
        return self._backend.read(_hex(digest), off, length, deadline=deadline)

    def writer(self) -> BlobWriter:
        raise BackendError("this backend is only read here")


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")
