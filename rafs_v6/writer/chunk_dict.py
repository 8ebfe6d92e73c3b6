"""A dictionary of chunks: a bootstrap that knows chunks of other images and where they are.

It is an image like others: each of its files, named by the digest, is one chunk.
So every reader of dictionaries takes it, the original's too, and it can be looked at.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rafs_v6.format.erofs import Digester
from rafs_v6.values import dataclass
from rafs_v6.writer.base_image import digested_chunks
from rafs_v6.writer.blob_file import write_bootstrap_to
from rafs_v6.writer.bootstrap import BlobEntry, Defaults, write_bootstrap
from rafs_v6.writer.errors import BuildError
from rafs_v6.writer.load import add_blob, check_alike, load
from rafs_v6.writer.prefetch import prefetch_rows
from rafs_v6.writer.tree import ROOT, Node, Tree, used_names

# Of a chunk that was found: its blob, index there, offset in the flat blob.
_Place = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class Dictionary:
    """What ``generate`` wrote: the blobs that it refers to, its chunks and their
    uncompressed bytes."""

    blobs: list[str]
    chunks: int
    size: int
    defaults: Defaults
    bootstrap: Path
    found: list[tuple[bytes, int]]  # digest and size of each chunk


def generate(sources: Sequence[Path], target: Path, prefetch: Sequence[bytes] = ()) -> Dictionary:
    """Write the chunks that at least two of ``sources`` have, or all chunks of the only one.

    ``target``: a file, or a directory, where the sha256 becomes the name.

    Of a chunk that lies in several blobs, the first source's is taken.
    """
    images = [load(path) for path in sources]
    blobs: dict[str, BlobEntry] = {}
    found: dict[tuple[bytes, int], _Place] = {}  # by digest and uncompressed size
    seen: Counter[tuple[bytes, int]] = Counter()
    for path, image in zip(sources, images, strict=True):
        check_alike(path, image.defaults, images[0].defaults)
        for blob in image.blobs.values():
            add_blob(blobs, blob, path)
        own = set()
        for digester in Digester:
            for blob, c in digested_chunks(image.blobs.values(), digester):
                key = c.digest, c.uncompressed_size
                own.add(key)
                found.setdefault(key, (blob.name, c.index, c.uncompressed_offset))
        seen.update(own)
    shared = (key for key in found if seen[key] > 1 or len(images) == 1)
    wanted = sorted(dict(shared).items())  # a digest with two sizes is a lie
    if not wanted:
        raise BuildError("no chunk is in two of these images: a dictionary of one, or of others?")
    tree = Tree(images[0].defaults.chunk_size)
    tree.add(ROOT, b"", Node(stat.S_IFDIR | 0o755))
    shelves = {}
    for shelf in dict.fromkeys(digest.hex()[:2].encode() for digest, _ in wanted):
        shelves[shelf] = tree.add(ROOT, shelf, Node(stat.S_IFDIR | 0o755))
    for digest, size in wanted:
        name = digest.hex().encode()
        row = tree.add(shelves[name[:2]], name, Node(stat.S_IFREG | 0o444, size=size))
        tree.at[row] = len(tree.refs)
        tree.refs.append(tree.locations.add(*found[digest, size]))
    used = used_names(tree)
    defaults = images[0].defaults
    first = prefetch_rows(tree, prefetch)
    boot = write_bootstrap(tree, [blobs[name] for name in used], defaults, first)
    written = write_bootstrap_to(target, boot)
    return Dictionary(used, len(wanted), sum(size for _, size in wanted), defaults, written, wanted)
