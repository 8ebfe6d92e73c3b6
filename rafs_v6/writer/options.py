"""What ``create`` is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from rafs_v6.writer.chunks import ChunkOptions
from rafs_v6.writer.overlay import WhiteoutSpec
from rafs_v6.writer.pieces import Progress


class Into(Enum):
    """What becomes of the data of a tar: stored as chunks, or referred to where they are."""

    RAFS = "rafs"
    REF = "ref"
    TARFS = "tarfs"


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """``blob`` or ``blob_dir`` says where the blob goes; ``bootstrap`` is None when inline.

    ``prefetch``: absolute paths whose data come first; ``prefetch_table``: also tell the reader.
    ``parent``: an image that the source lies over; ``whiteouts`` says how the source hides
    what is there.  ``chunk_dict``: a bootstrap whose chunks are referred to, not stored again.
    """

    chunks: ChunkOptions
    bootstrap: Path | None
    blob: Path | None
    blob_dir: Path | None
    inline_meta: bool = False
    toc: bool = False
    blob_id: str | None = None
    repeatable: bool = False
    prefetch: Sequence[bytes] = ()
    prefetch_table: bool = False
    parent: Path | None = None
    chunk_dict: Path | None = None
    whiteouts: WhiteoutSpec = WhiteoutSpec.NONE
    progress: Progress | None = None
