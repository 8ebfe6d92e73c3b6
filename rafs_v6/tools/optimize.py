"""The data of files that a start needs, together in a blob of their own (format.md 4.8)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rafs_v6.format.erofs import BlobFeatures
from rafs_v6.tools.rewrite import Rewrite
from rafs_v6.values import dataclass
from rafs_v6.writer.errors import BuildError
from rafs_v6.writer.prefetch import prefetch_rows


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
    tree = rewrite.tree
    found = prefetch_rows(tree, paths)
    below = (tree.link[row] for top in found for row in tree.below(top))
    files = list(dict.fromkeys(row for row in below if tree.chunks(row)))
    if not files:
        raise BuildError("none of the paths is a file with data, or a directory with some")
    rewrite.prefetch = paths
    blob = rewrite.move(
        (location for row in files for location in tree.chunks(row)), files, directory,
        features=BlobFeatures.IS_SEPARATED_WITH_PREFETCH_FILES, digest_is_id=True,
    )  # fmt: skip
    return Optimized(rewrite.write(target, last=blob), blob, len(files))
