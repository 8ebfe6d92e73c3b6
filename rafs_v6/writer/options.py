"""Options of building an image: plain values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path

from rafs_v6.format.erofs import BlobFeatures, Compressor, Digester
from rafs_v6.values import dataclass
from rafs_v6.writer.cipher import XtsKey
from rafs_v6.writer.overlay import WhiteoutSpec
from rafs_v6.writer.xattrs import Warn


@dataclass(frozen=True, slots=True)
class ChunkOptions:
    """``batch_size``: files of one chunk below half of it are compressed together; 0: none."""

    compressor: Compressor
    digester: Digester
    chunk_size: int
    level: int
    threads: int
    batch_size: int = 0
    cipher: XtsKey | None = None

    @property
    def features(self) -> BlobFeatures:
        """Those of the blob that follow."""
        found = BlobFeatures(0)
        if self.batch_size:
            found |= BlobFeatures.BATCH | BlobFeatures.CHUNK_INFO_V2
        if self.cipher is not None:
            found |= BlobFeatures.ENCRYPTED | BlobFeatures.CHUNK_INFO_V2
        return found


Progress = Callable[[int, int], None]
"""Is told of the bytes that were read, and of all there are."""


class Into(Enum):
    """What becomes of the data of a tar: stored as chunks, or referred to where they are."""

    RAFS = "rafs"
    REF = "ref"
    TARFS = "tarfs"


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """``blob`` or ``blob_dir`` says where the blob goes; ``cache_dir``: the cache files that a node
    would make of it go there, with or without it, and its chunks are stored uncompressed.
    ``bootstrap`` is None when inline.

    A bootstrap that is a directory gets a file there, named by its sha256.

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
    cache_dir: Path | None = None
    progress: Progress | None = None
    warn: Warn | None = None
