"""The data of files that a start needs, together in a blob of their own (sheet 4.8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rafs_v6.build.errors import BuildError
from rafs_v6.build.prefetch import prefetch_nodes
from rafs_v6.build.tree import traverse
from rafs_v6.erofs import BlobFeatures
from rafs_v6.tools.rewrite import Rewrite


@dataclass(frozen=True, slots=True)
class Optimized:
    """``prefetch_blob``: the new one, also the last of ``blobs``."""

    blobs: list[str]
    prefetch_blob: str
    files: int


def optimize(rewrite: Rewrite, paths: Sequence[bytes], target: Path, directory: Path) -> Optimized:
    """Copy the chunks of the files at or below ``paths`` into a new blob in ``directory``.

    They are in the order of ``paths``, which also becomes the prefetch table of
    ``target``.  ``BuildError`` when no path names data.
    """
    found = prefetch_nodes(rewrite.root, paths)
    files = {
        id(node): node for top in found for _, node in traverse(top) if node.chunks
    }.values()  # fmt: skip
    if not files:
        raise BuildError("none of the paths is a file with data, or a directory with some")
    rewrite.prefetch = paths
    blob = rewrite.move(
        (c for node in files for c in node.chunks), files, directory,
        features=BlobFeatures.IS_SEPARATED_WITH_PREFETCH_FILES,
    )  # fmt: skip
    return Optimized(rewrite.write(target, last=blob), blob, len(files))
