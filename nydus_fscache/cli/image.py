"""``nydus-image`` with this project's backends: the library it is made of knows none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nydus_fscache.backend.make import make_backend
from nydus_fscache.errors import FscacheError
from rafs_v6.build.cli import main as image_main
from rafs_v6.tools.blobs import Blobs, BlobsError

_PATIENCE_S = 120.0  # for one read, of at most some 16 MiB


@contextlib.contextmanager
def open_backend(config: Mapping[str, Any]) -> Iterator[Blobs]:
    """``Blobs`` of the ``backend`` object of nydusd's configuration v2."""
    try:
        backend = make_backend(config)
    except FscacheError as error:
        raise _translated(error) from error

    def read_at(blob_id: str, offset: int, length: int) -> bytes:
        try:
            return backend.read(
                blob_id, offset, length, deadline=time.monotonic() + _PATIENCE_S
            )
        except FscacheError as error:
            raise _translated(error) from error

    def size(blob_id: str) -> int:
        try:
            return backend.size(blob_id, deadline=time.monotonic() + _PATIENCE_S)
        except FscacheError as error:
            raise _translated(error) from error

    try:
        yield Blobs(read_at, size)
    finally:
        backend.close()


def _translated(error: FscacheError) -> BlobsError:
    return BlobsError(f"{error}" + (f"; {error.hint}" if error.hint else ""))


def main(argv: Sequence[str] | None = None) -> int:
    return image_main(argv, open_backend)
