"""Where the bootstrap of an image is: a file of its own, or inside a blob (format.md 2.10)."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from rafs_v6.faults import STRICT, Checks
from rafs_v6.format.erofs import EROFS_SUPER_MAGIC_V1, EROFS_SUPER_OFFSET, RAFS_V5_MAGIC
from rafs_v6.format.toc import TAR_HEADER, find_bootstrap, is_tar_header
from rafs_v6.reader.bootstrap import Bootstrap


def locate_bootstrap(path: Path, check: Checks = STRICT) -> tuple[Bootstrap, bool]:
    """The bootstrap at ``path``, its tree not validated yet, and whether it was inside a blob.

    Raises ``ImageError`` for what is neither.  To a ``check`` that collects faults such a file is
    a damaged bootstrap, unless it ends as blobs do.
    """
    with path.open("rb") as f:

        def read_at(_: str, offset: int, length: int) -> bytes:
            return os.pread(f.fileno(), length, offset)

        size = os.fstat(f.fileno()).st_size
        ends_as_blob = is_tar_header(read_at("", max(0, size - TAR_HEADER), TAR_HEADER))
        if _begins_as_bootstrap(read_at("", 0, EROFS_SUPER_OFFSET + 4)) or (
            check is not STRICT and not ends_as_blob
        ):
            return Bootstrap.from_file(path, check), False
        return Bootstrap.from_bytes(find_bootstrap(read_at, path.name, size), check), True


def _begins_as_bootstrap(head: bytes) -> bool:
    """By the magic numbers; what is too short for one is left to the reader of bootstraps."""
    if len(head) < EROFS_SUPER_OFFSET + 4:
        return True
    (v6,) = struct.unpack_from("<I", head, EROFS_SUPER_OFFSET)
    (v5,) = struct.unpack_from("<I", head)
    return bool(v6 == EROFS_SUPER_MAGIC_V1 or v5 == RAFS_V5_MAGIC)
