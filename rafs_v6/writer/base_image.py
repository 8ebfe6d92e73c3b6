"""The base of an image: a parent below it, a dictionary of chunks beside it (format.md 4.2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rafs_v6.format.erofs import ChunkRecord, Digester
from rafs_v6.values import dataclass
from rafs_v6.writer.bootstrap import BlobEntry, Defaults
from rafs_v6.writer.chunk_index import ChunkIndex
from rafs_v6.writer.errors import BuildError
from rafs_v6.writer.overlay import WhiteoutSpec, drop_whiteouts
from rafs_v6.writer.tree import Tree


@dataclass(frozen=True, slots=True)
class BaseImage:
    """``blobs`` by name, those of ``first`` (the parent's) lead the blob table."""

    tree: Tree | None
    blobs: Mapping[str, BlobEntry]
    first: Sequence[str]
    chunks: ChunkIndex


def load_base(
    parent: Path | None, chunk_dict: Path | None, defaults: Defaults, whiteouts: WhiteoutSpec
) -> BaseImage:
    """``BuildError`` when either cannot share a bootstrap with an image of ``defaults``.

    What hides entries is left out of the parent, as ``merge`` leaves it out of the lowest layer.
    """
    if parent is None and chunk_dict is None:
        return BaseImage(None, {}, (), ChunkIndex())
    # Reading images takes long to import, and most are built upon none.
    from rafs_v6.writer.load import add_blob, check_alike, load, load_blobs, open_bootstrap  # noqa: PLC0415

    blobs: dict[str, BlobEntry] = {}
    if chunk_dict is not None:
        boot = open_bootstrap(chunk_dict, tables_only=True)
        if boot.chunk_size != defaults.chunk_size:
            raise BuildError(
                f"{chunk_dict}: a dictionary of chunks of {boot.chunk_size:#x} bytes;"
                f" this image has {defaults.chunk_size:#x}: use the same --chunk-size"
            )
        for blob in load_blobs(boot, chunk_dict):
            add_blob(blobs, blob, chunk_dict)
    tree, first = None, list[str]()
    if parent is not None:
        below = load(parent)
        check_alike(parent, below.defaults, defaults)
        tree, first = below.tree, list(below.blobs)
        if whiteouts is not WhiteoutSpec.NONE:
            for spec in dict.fromkeys((WhiteoutSpec.OCI, whiteouts)):
                tree = drop_whiteouts(tree, spec)
        for blob in below.blobs.values():
            add_blob(blobs, blob, parent)
    known = ChunkIndex()
    for blob, c in digested_chunks(blobs.values(), defaults.digester):
        if known.number(c.digest, c.uncompressed_size) == len(known.locations):
            known.locations.add(blob.name, c.index, c.uncompressed_offset)
    return BaseImage(tree, blobs, first, known)


def digested_chunks(
    blobs: Iterable[BlobEntry], digester: Digester
) -> Iterator[tuple[BlobEntry, ChunkRecord]]:
    """The chunks of ``blobs`` that were digested by ``digester``.

    Compressors may differ: each blob is read by its own.
    """
    for blob in blobs:
        if blob.record.digest_algo == digester:
            # Zeros are how "no digest" is written.
            yield from ((blob, c) for c in blob.chunks if any(c.digest))
