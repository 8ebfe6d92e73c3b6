"""What an image is built upon: a parent below it, a dictionary of chunks beside it (sheet 4.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rafs_v6.build.bootstrap import BlobEntry, Defaults
from rafs_v6.build.errors import BuildError
from rafs_v6.build.load import add_blob, check_alike, load, load_blobs, open_bootstrap
from rafs_v6.build.tree import Chunk, Node
from rafs_v6.erofs import Digester

Known = dict[bytes, Chunk]
"""``chunk_key`` to the chunk that is referred to instead of being stored."""


def chunk_key(digest: bytes, size: int) -> bytes:
    """``size``: plain bytes."""
    return digest + size.to_bytes(4, "little")


@dataclass(frozen=True, slots=True)
class Base:
    """``blobs`` by name, those of ``first`` (the parent's) lead the blob table."""

    root: Node | None
    blobs: Mapping[str, BlobEntry]
    first: Sequence[str]
    chunks: Known


def load_base(parent: Path | None, chunk_dict: Path | None, defaults: Defaults) -> Base:
    """``BuildError`` when either cannot share a bootstrap with an image of ``defaults``."""
    blobs: dict[str, BlobEntry] = {}
    if chunk_dict is not None:
        boot = open_bootstrap(chunk_dict)
        if boot.chunk_size != defaults.chunk_size:
            raise BuildError(
                f"{chunk_dict}: a dictionary of chunks of {boot.chunk_size:#x} bytes;"
                f" this image has {defaults.chunk_size:#x}: use the same --chunk-size"
            )
        for blob in load_blobs(boot, chunk_dict):
            add_blob(blobs, blob, chunk_dict)
    root, first = None, list[str]()
    if parent is not None:
        below = load(parent)
        check_alike(parent, below.defaults, defaults)
        root, first = below.root, list(below.blobs)
        for blob in below.blobs.values():
            add_blob(blobs, blob, parent)
    return Base(root, blobs, first, known_chunks(blobs.values(), defaults.digester))


def known_chunks(blobs: Iterable[BlobEntry], digester: Digester) -> Known:
    """The chunks of ``blobs`` that were digested by ``digester``; of equal ones the first.

    Compressors may differ: each blob is read by its own.
    """
    known: Known = {}
    for blob in blobs:
        if blob.record.digest_algo != digester:
            continue
        for c in blob.chunks:
            # Zeros are how "no digest" is written.
            if any(c.digest):
                known.setdefault(
                    chunk_key(c.digest, c.uncompressed_size),
                    Chunk(blob.name, c.index, c.uncompressed_offset, c.uncompressed_size),
                )
    return known
