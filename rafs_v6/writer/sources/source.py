"""A source of an image, as the rest of the builder sees it."""

from __future__ import annotations

from typing import Protocol

from rafs_v6.writer.tree import Tree


class Source(Protocol):
    """``tree``, and the data of its files, which may stand in another tree by now."""

    tree: Tree

    @property
    def top(self) -> bytes | None:
        """The directory that the tree's paths are below, or None: ``data_at`` has the data."""

    def data_at(self, extent: int) -> tuple[int, int]:
        """(descriptor, offset) of the data of a file in whose row ``extent`` is."""
