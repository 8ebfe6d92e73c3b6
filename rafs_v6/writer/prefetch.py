"""Which rows of a tree are prefetched: the patterns of ``--prefetch-policy`` (format.md 1.16)."""

from __future__ import annotations

from collections.abc import Sequence

from rafs_v6.writer.tree import Tree


def prefetch_rows(tree: Tree, patterns: Sequence[bytes]) -> list[int]:
    """The rows that ``patterns`` name, in their order.

    Relative paths, what lies at or below an earlier pattern, and what does not
    exist are left out.
    """
    kept: list[bytes] = []
    rows: dict[int, None] = {}
    for pattern in patterns:
        path = pattern.rstrip(b"/")
        covered = any(path == k or path.startswith(k + b"/") for k in kept)
        if covered or not pattern.startswith(b"/"):
            continue
        kept.append(path)
        row = tree.find(path)
        if row is not None:
            rows[tree.link[row]] = None
    return list(rows)
