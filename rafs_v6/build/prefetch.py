"""Which nodes are prefetched: the patterns of ``--prefetch-policy`` (sheet 1.16)."""

from __future__ import annotations

from collections.abc import Sequence

from rafs_v6.build.tree import Node


def prefetch_nodes(root: Node, patterns: Sequence[bytes]) -> list[Node]:
    """The nodes that ``patterns`` name, in their order.

    Relative paths, what lies at or below an earlier pattern, and what does not
    exist are left out.
    """
    kept: list[bytes] = []
    nodes: list[Node] = []
    for pattern in patterns:
        path = pattern.rstrip(b"/")
        covered = any(path == k or path.startswith(k + b"/") for k in kept)
        if covered or not pattern.startswith(b"/"):
            continue
        kept.append(path)
        node: Node | None = root
        for part in path.split(b"/")[1:]:
            node = node.children.get(part) if node is not None else None
        if node is not None and all(node is not other for other in nodes):
            nodes.append(node)
    return nodes
