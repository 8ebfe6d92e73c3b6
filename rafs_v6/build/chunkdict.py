"""A dictionary of chunks: a bootstrap that knows chunks of other images and where they are.

It is an image like others: each of its files, named by the digest, is one chunk.
So every reader of dictionaries takes it, the original's too, and it can be looked at.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rafs_v6.build.base import Known, known_chunks
from rafs_v6.build.blobfile import write_atomically
from rafs_v6.build.bootstrap import BlobEntry, Defaults, write_bootstrap
from rafs_v6.build.errors import BuildError
from rafs_v6.build.load import add_blob, check_alike, load, used_names
from rafs_v6.build.tree import Node
from rafs_v6.erofs import Digester

_DIGEST = 32  # bytes, which a key begins with


@dataclass(frozen=True, slots=True)
class Dictionary:
    """What ``generate`` wrote: the blobs that it refers to, its chunks and their plain bytes."""

    blobs: list[str]
    chunks: int
    size: int
    defaults: Defaults


def generate(sources: Sequence[Path], target: Path) -> Dictionary:
    """Write the chunks that at least two of ``sources`` have, or all chunks of the only one.

    Of a chunk that lies in several blobs, the first source's is taken.
    """
    images = [load(path) for path in sources]
    blobs: dict[str, BlobEntry] = {}
    found: Known = {}
    seen: Counter[bytes] = Counter()
    for path, image in zip(sources, images, strict=True):
        check_alike(path, image.defaults, images[0].defaults)
        for blob in image.blobs.values():
            add_blob(blobs, blob, path)
        for digester in Digester:
            chunks = known_chunks(image.blobs.values(), digester)
            seen.update(chunks.keys())
            found = chunks | found
    wanted = [key for key in found if seen[key] > 1 or len(images) == 1]
    if not wanted:
        raise BuildError("no chunk is in two of these images: a dictionary of one, or of others?")
    root = Node(stat.S_IFDIR | 0o755)
    for key in wanted:
        digest, size = key[:_DIGEST].hex(), found[key].size
        shelf = root.children.setdefault(digest[:2].encode(), Node(stat.S_IFDIR | 0o755))
        shelf.children[digest.encode()] = Node(stat.S_IFREG | 0o444, size=size, chunks=[found[key]])
    used = used_names(root)
    defaults = images[0].defaults
    write_atomically(target, write_bootstrap(root, [blobs[name] for name in used], defaults))
    return Dictionary(used, len(wanted), sum(found[key].size for key in wanted), defaults)
