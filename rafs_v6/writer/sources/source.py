"""A source of an image, as the rest of the builder sees it."""

from __future__ import annotations

from typing import Protocol

from rafs_v6.writer.tree import Tree


class Source(Protocol):
    """``tree``, and the data of its files, which may stand in another tree by now."""

    tree: Tree

    def open(self, path: bytes, extent: int) -> tuple[int, int]:
        """(descriptor, offset) of the data of the file ``path``, in whose row ``extent`` is."""

    def close_file(self, fd: int) -> None:
        """The descriptor is not used any more."""
