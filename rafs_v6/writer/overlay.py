"""Laying one tree over another: the rules of OCI layers and of overlayfs (format.md 4.4)."""

from __future__ import annotations

import stat
from enum import StrEnum

from rafs_v6.writer.follow import follow_links
from rafs_v6.writer.order import ordered
from rafs_v6.writer.tree import IMPLIED, ROOT, Tree

OCI_PREFIX = b".wh."
_OCI_OPAQUE = b".wh..wh..opq"
_OVERLAY_OPAQUE = b"trusted.overlay.opaque"


class WhiteoutSpec(StrEnum):
    OCI = "oci"
    OVERLAYFS = "overlayfs"
    NONE = "none"


def apply_layer(lower: Tree, upper: Tree, spec: WhiteoutSpec) -> Tree:
    """``upper`` over ``lower``.

    Whiteouts only touch what was there before, and vanish, also where nothing was.
    """
    if spec is not WhiteoutSpec.OVERLAYFS:
        upper = follow_links(lower, upper)
    return _Overlay(lower, upper, spec).made()


def drop_whiteouts(tree: Tree, spec: WhiteoutSpec) -> Tree:
    """``tree`` as the lowest layer, which hides nothing."""
    if spec is WhiteoutSpec.NONE or (spec is WhiteoutSpec.OCI and OCI_PREFIX not in tree.names):
        return tree
    lower = Tree()
    lower.copy(tree, ROOT, ROOT, b"")
    return apply_layer(lower, tree, spec)


# The rows of an entry in the lower and the upper tree, where it has any.
_Entry = tuple[int | None, int | None]


class _Overlay:
    def __init__(self, lower: Tree, upper: Tree, spec: WhiteoutSpec) -> None:
        self._lower, self._upper, self._spec = lower, upper, spec
        self._opaque = _take_opaque(upper) if spec is WhiteoutSpec.OVERLAYFS else set()

    def made(self) -> Tree:
        top: _Entry = (ROOT, ROOT)
        chunk_size = self._upper.chunk_size or self._lower.chunk_size
        return ordered(top, self._origin, self._below, chunk_size)

    def _origin(self, entry: _Entry) -> tuple[Tree, int]:
        low, up = entry
        if up is not None and (low is None or not self._upper.flags[up] & IMPLIED):
            return self._upper, up
        assert low is not None
        return self._lower, low

    def _below(self, entry: _Entry) -> list[tuple[bytes, _Entry]]:
        low, up = entry
        lower, upper = self._lower, self._upper
        under = () if low is None else lower.children(low)
        if up is None:
            return [(lower.name(row), (row, None)) for row in under]
        entries: dict[bytes, _Entry] = {lower.name(row): (row, None) for row in under}
        shown = {upper.name(row): row for row in upper.children(up)}
        for name in [name for name, row in shown.items() if self._is_whiteout(name, row)]:
            del shown[name]
            if self._spec is WhiteoutSpec.OVERLAYFS:
                entries.pop(name, None)
            elif name == _OCI_OPAQUE:
                entries.clear()
            else:
                entries.pop(name[len(OCI_PREFIX) :], None)
        if up in self._opaque:
            entries.clear()
        for name, row in shown.items():
            old = entries[name][0] if name in entries and upper.is_dir(row) else None
            entries[name] = (old if old is not None and lower.is_dir(old) else None, row)
        return sorted(entries.items())

    def _is_whiteout(self, name: bytes, row: int) -> bool:
        if self._spec is WhiteoutSpec.OCI:
            return name.startswith(OCI_PREFIX)
        return (
            self._spec is WhiteoutSpec.OVERLAYFS
            and stat.S_ISCHR(self._upper.mode[row])
            and not self._upper.at[row]
        )


def _take_opaque(tree: Tree) -> set[int]:
    """The directories that hide what is below them in lower layers; their mark is removed."""
    plain = {
        number: {key: value for key, value in xattrs.items() if key != _OVERLAY_OPAQUE}
        for number, xattrs in enumerate(tree.xattr_sets)
        if xattrs.get(_OVERLAY_OPAQUE) == b"y"
    }
    rows = {row for row in range(len(tree)) if tree.xattr[row] in plain and tree.is_dir(row)}
    for row in rows:
        tree.set_xattrs(row, plain[tree.xattr[row]])
    return rows
