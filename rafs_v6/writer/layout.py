"""A tree becomes the metadata region of a bootstrap: locations, then bytes (csrc/writer/layout.c).

ChunkLocations follow upstream's first-fit rule, so that inline data share blocks with
inodes.  Offsets here count from the region's start, which holds one empty block.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from rafs_v6._writer import ffi, lib
from rafs_v6.format.erofs import EROFS_BLOCK, round_up
from rafs_v6.writer.errors import BuildError
from rafs_v6.writer.tree import Tree, column_in_c

_WINDOW = 4 << 20  # bytes that are rendered at a time
_NO_BLOB = 0xFFFF


class Layout:
    """``Layout(tree)`` finds the locations; ``render`` writes them for a given ``meta_addr``.

    ``block``: 4096 bytes, or 512 for tarfs.  The region's empty start is 4096 for both.
    ``blob_index``: the position of each blob in the blob table; ``BuildError`` when a
    file has data in another.  The tree must not change any more.
    """

    def __init__(self, tree: Tree, block: int, blob_index: Mapping[str, int]) -> None:
        self.inos = len(tree)
        self.has_xattr = any(tree.xattr)
        self._kept: list[Any] = []  # what C has pointers to
        locations, xattrs = tree.locations, list(tree.packed_xattrs)
        t = self._tree = ffi.new("struct rafs_tree *")
        t.n, t.block, t.chunk_size = len(tree), block, max(tree.chunk_size, block)
        for name in (
            "mode", "uid", "gid", "mtime", "mtime_nsec", "size", "at", "parent", "link", "xattr",
            "names", "targets", "refs", "flags",
        ):  # fmt: skip
            setattr(t, name, self._column(getattr(tree, name)))
        t.name = self._column(tree.name_off)
        t.xattrs = self._column(b"".join(xattrs))
        t.xattr_off = self._column(array("I", accumulate((len(x) for x in xattrs), initial=0)))
        t.location_blob, t.location_index = (
            self._column(locations.blob),
            self._column(locations.index),
        )
        t.location_flat = self._column(locations.flat)
        t.blob_index = self._column(
            array("H", (blob_index.get(name, _NO_BLOB) for name in locations.names))
        )
        for name in ("nid", "data", "dlen", "nlink"):
            setattr(t, name, self._column(array("I", bytes(4 * len(tree)))))
        end = lib.rafs_layout_place(t)
        if end == -errno.ENOENT:
            raise BuildError("a file has data in a blob that is not in the blob table")
        if end < 0:
            raise BuildError(f"the tree has no room in a bootstrap: {os.strerror(-end)}")
        self.size = round_up(end, EROFS_BLOCK)

    def _column(self, values: array[int] | bytearray | bytes) -> Any:
        column = column_in_c(values)
        self._kept.append(column)
        return column

    def nid(self, row: int) -> int:
        return int(self._tree.nid[row])

    def render(self, meta_addr: int) -> Iterator[bytearray]:
        """The bytes of the region, ``size`` in all."""
        for at in range(0, self.size, _WINDOW):
            out = bytearray(min(_WINDOW, self.size - at))
            lib.rafs_layout_render(
                self._tree, meta_addr, at, ffi.from_buffer("uint8_t[]", out), len(out)
            )
            yield out
