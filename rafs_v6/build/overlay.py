"""Laying one tree over another: the rules of OCI layers and of overlayfs (sheet 4.4)."""

from __future__ import annotations

import stat
from enum import StrEnum

from rafs_v6.build.tree import Node

_OCI_PREFIX = b".wh."
_OCI_OPAQUE = b".wh..wh..opq"
_OVERLAY_OPAQUE = b"trusted.overlay.opaque"


class WhiteoutSpec(StrEnum):
    OCI = "oci"
    OVERLAYFS = "overlayfs"
    NONE = "none"


def apply_layer(lower: Node, upper: Node, spec: WhiteoutSpec) -> Node:
    """``upper`` over ``lower``; both are used up.

    Whiteouts only touch what was there before, and vanish, also where nothing was.
    """
    pending = [(lower, upper)]
    while pending:
        low, up = pending.pop()
        _remove(low, up, spec)
        below = low.children
        for name, node in up.children.items():
            if node.is_dir:
                under = below.get(name)
                if under is None or not under.is_dir:
                    under = Node(node.mode)
                pending.append((under, node))
            below[name] = node
        up.children = below
    return upper


def drop_whiteouts(root: Node, spec: WhiteoutSpec) -> Node:
    """``root`` as the lowest layer, which hides nothing."""
    return apply_layer(Node(root.mode), root, spec)


def _remove(low: Node, up: Node, spec: WhiteoutSpec) -> None:
    if spec is WhiteoutSpec.OCI:
        for name in [n for n in up.children if n.startswith(_OCI_PREFIX)]:
            del up.children[name]
            if name == _OCI_OPAQUE:
                low.children = {}
            else:
                low.children.pop(name[len(_OCI_PREFIX) :], None)
    elif spec is WhiteoutSpec.OVERLAYFS:
        if up.xattrs.get(_OVERLAY_OPAQUE) == b"y":
            del up.xattrs[_OVERLAY_OPAQUE]
            low.children = {}
        for name in [n for n, c in up.children.items() if stat.S_ISCHR(c.mode) and not c.rdev]:
            del up.children[name]
            low.children.pop(name, None)
