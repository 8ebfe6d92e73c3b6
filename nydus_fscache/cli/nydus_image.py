"""``nydus-image`` with this project's backends: the library it is made of knows none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nydus_fscache.cli.arguments import Parser
from nydus_fscache.errors import FscacheError
from rafs_v6.cli import main as image_main
from rafs_v6.errors import BlobsError

if TYPE_CHECKING:
    from rafs_v6.reader.blobs import Blobs

_PATIENCE_S = 120.0  # for one read, of at most some 16 MiB


class _Backends:
    """See ``rafs_v6.cli._images.Backends``."""

    @contextlib.contextmanager
    def open(self, config: Mapping[str, Any]) -> Iterator[Blobs]:
        # Imported only here: most commands read no backend, and are done in less time.
        from nydus_fscache.backend.make import make_backend  # noqa: PLC0415
        from rafs_v6.reader.blobs import Blobs  # noqa: PLC0415

        with _translated():
            backend = make_backend(config)

        def read_at(blob_id: str, offset: int, length: int) -> bytes:
            with _translated():
                return backend.read(
                    blob_id, offset, length, deadline=time.monotonic() + _PATIENCE_S
                )

        def size(blob_id: str) -> int:
            with _translated():
                return backend.size(blob_id, deadline=time.monotonic() + _PATIENCE_S)

        try:
            yield Blobs(read_at, size)
        finally:
            backend.close()

    def of_nydusd(self, path: Path) -> Mapping[str, Any]:
        from nydus_fscache.config.nydusd import backend_of, document_of, read  # noqa: PLC0415

        with _translated():
            return backend_of(document_of(read(path), path), path)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except FscacheError as error:
        hint = f"; {error.hint}" if error.hint else ""
        raise BlobsError(f"{error}{hint}") from error


def main(argv: Sequence[str] | None = None) -> int:
    return image_main(argv, _Backends(), Parser)
