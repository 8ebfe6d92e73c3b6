"""Blobs without the chunks that no file uses any more; small ones merged.

The rules are the original's: blobs that nobody uses are dropped; one of which
less than a share is used is written anew; and when more than so many are left,
small ones are put together.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from pathlib import Path

from rafs_v6.format.erofs import BlobFeatures
from rafs_v6.tools.rewrite import Rewrite
from rafs_v6.values import dataclass

_FIXED = BlobFeatures.SEPARATE | BlobFeatures.IS_CHUNKDICT_GENERATED | BlobFeatures.ENCRYPTED


@dataclass(frozen=True, slots=True)
class CompactOptions:
    """``min_used_ratio``: per cent of a blob's compressed data; sizes in bytes; ``layers``: blobs
    that may be left before small ones (less than ``blob_size``) are merged, up to ``max_size``."""

    min_used_ratio: int = 5
    blob_size: int = 10 << 20
    max_size: int = 100 << 20
    layers: int = 32


@dataclass(frozen=True, slots=True)
class Compacted:
    """Ids of blobs.  ``replaced``: those whose chunks now lie in ``written``, or nowhere."""

    blobs: list[str]
    written: list[str]
    replaced: list[str]


def compact(
    rewrite: Rewrite, options: CompactOptions, target: Path, directory: Path,
    keep: Set[str] = frozenset(),
) -> Compacted:  # fmt: skip
    """Write new blobs to ``directory`` and the bootstrap ``target``.

    ``keep``: ids of blobs that stay as they are (of a chunk dictionary).  Blobs
    that refer to a tar, or are encrypted, stay too.
    """
    tree = rewrite.tree
    files = [row for row in range(len(tree)) if tree.is_file(row)]
    used: dict[str, dict[int, int]] = {}  # blob and chunk index to a location
    for row in files:
        for location in tree.chunks(row):
            blob, number = tree.locations.key(location)
            used.setdefault(blob, {}).setdefault(number, location)
    index = rewrite.indexes()
    before = list(index)
    sizes = {name: _used_size(rewrite, index[name], used[name]) for name in before if name in used}
    free = [
        name for name in sizes
        if name not in keep and not rewrite.entries[name].record.features & _FIXED
    ]  # fmt: skip
    groups = [
        [name] for name in free
        if sizes[name] * 100
        < options.min_used_ratio * rewrite.image.bootstrap.blobs[index[name]].data_size
    ]  # fmt: skip
    if len(sizes) > options.layers:
        groups = _merged(free, sizes, groups, options)
    written = []
    for group in groups:
        chunks = [used[name][i] for name in group for i in sorted(used[name])]
        written.append(rewrite.move(chunks, files, directory))
    ids = rewrite.write(target)
    return Compacted(ids, written, [name for name in before if name not in ids])


def _merged(
    free: list[str], sizes: dict[str, int], sparse: list[list[str]], options: CompactOptions
) -> list[list[str]]:
    """Small blobs in groups; what stays alone and is not ``sparse`` is left as it is."""
    small = {name for name in free if sizes[name] < options.blob_size}
    groups: list[list[str]] = []
    total = 0
    for name in free:
        if name not in small:
            continue
        if not groups or total + sizes[name] > options.max_size:
            groups.append([])
            total = 0
        groups[-1].append(name)
        total += sizes[name]
    groups = [g for g in groups if len(g) > 1]
    taken = {name for group in groups for name in group}
    return groups + [g for g in sparse if g[0] not in taken]


def _used_size(rewrite: Rewrite, blob: int, chunks: Iterable[int]) -> int:
    """Compressed bytes of ``chunks``; of a batch, all."""
    chunk_map = rewrite.image.chunk_map(blob)
    units = {chunk_map.blob.chunks[i].unit for i in chunks}
    return sum(chunk_map.unit(u).clen for u in units)
