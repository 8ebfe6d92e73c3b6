"""Names of a layer below symbolic links of the layers under it: they lie where the links lead.

A layer with ``lib/x.so`` over an image in which ``lib`` is a link to ``usr/lib`` means
``usr/lib/x.so``: container runtimes follow links when they unpack.  A directory that the layer
lists itself takes the link's place, as there.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator

from rafs_v6.errors import shown
from rafs_v6.values import dataclass, field
from rafs_v6.writer.errors import SourceError
from rafs_v6.writer.order import ordered
from rafs_v6.writer.tree import IMPLIED, ROOT, Node, Tree

_LINKS_MAX = 40  # as in Linux
_PREFIX, _OPAQUE = b".wh.", b".wh..wh..opq"
_Path = tuple[bytes, ...]
_IMPLIED = Tree()
_IMPLIED.add(ROOT, b"", Node(stat.S_IFDIR | 0o755), IMPLIED)


@dataclass(slots=True, eq=False)
class _Name:
    """A row of ``tree`` that may be moved; ``below`` of directories."""

    tree: Tree
    row: int
    below: dict[bytes, _Name] = field(default_factory=dict)

    @property
    def is_implied(self) -> bool:
        return bool(self.tree.flags[self.row] & IMPLIED)


def follow_links(lower: Tree, upper: Tree) -> Tree:
    """``upper``, with what its implied directories have put where links of ``lower`` lead.

    Raises ``SourceError`` for links without end, and for those that lead to a file.
    """
    if next(_below_links(lower, _top(upper, deep=False)), None) is None:
        return upper
    top = _top(upper, deep=True)
    for _ in range(_LINKS_MAX):
        path = next(_below_links(lower, top), None)
        if path is None:
            break
        parent = _find(top, path[:-1])
        assert parent is not None
        moved = parent.below.pop(path[-1])
        _merge(_made(lower, top, _resolved(lower, top, path)), moved)
    else:
        raise SourceError("too many symbolic links on the way to names of the layer")
    return ordered(
        top, lambda name: (name.tree, name.row), lambda name: sorted(name.below.items()),
        upper.chunk_size,
    )  # fmt: skip


def _top(upper: Tree, *, deep: bool) -> _Name:
    """``deep``: files too, which are only needed to move them."""
    top = _Name(upper, ROOT)
    pending = [top]
    while pending:
        name = pending.pop()
        for row in upper.children(name.row):
            is_dir = upper.is_dir(row)
            if deep or is_dir or upper.name(row).startswith(_PREFIX):
                child = name.below[upper.name(row)] = _Name(upper, row)
                if is_dir:
                    pending.append(child)
    return top


def _below_links(lower: Tree, top: _Name) -> Iterator[_Path]:
    """Paths of implied directories that are links in ``lower``, the uppermost ones."""
    pending: list[tuple[_Path, _Name, int]] = [((), top, ROOT)]
    while pending:
        path, above, low = pending.pop()
        if _OPAQUE in above.below:
            continue
        for text, name in above.below.items():
            if not name.tree.is_dir(name.row) or _PREFIX + text in above.below:
                continue
            row = lower.child(low, text)
            if row is None:
                continue
            if lower.is_dir(row):
                pending.append(((*path, text), name, row))
            elif stat.S_ISLNK(lower.mode[row]) and name.is_implied:
                yield (*path, text)


def _find(top: _Name, path: _Path) -> _Name | None:
    name: _Name | None = top
    for part in path:
        name = name.below.get(part) if name is not None else None
    return name


def _resolved(lower: Tree, top: _Name, path: _Path) -> _Path:
    """Where ``path`` leads, a link included, in the two trees together."""
    at: _Path = ()
    todo, links = list(reversed(path)), 0
    while todo:
        part = todo.pop()
        if part == b"..":
            at = at[:-1]
            continue
        target = _target(lower, top, (*at, part))
        if target is None:
            at = (*at, part)
            continue
        links += 1
        if links > _LINKS_MAX:
            raise SourceError(f"{shown(b'/'.join(path))}: too many symbolic links on the way to it")
        if target.startswith(b"/"):
            at = ()
        todo += reversed([p for p in target.split(b"/") if p not in (b"", b".")])
    return at


def _target(lower: Tree, top: _Name, path: _Path) -> bytes | None:
    """Of the link at ``path``, None when it is none."""
    name = _find(top, path)
    if name is not None and not (name.tree.is_dir(name.row) and name.is_implied):
        return name.tree.target(name.row) if stat.S_ISLNK(name.tree.mode[name.row]) else None
    row = lower.find(b"/".join(path))
    if row is None or not stat.S_ISLNK(lower.mode[row]):
        return None
    return lower.target(row)


def _made(lower: Tree, top: _Name, path: _Path) -> _Name:
    """The directory ``path`` of the layer, implied when the layer has not got it."""
    name = top
    for i, part in enumerate(path):
        child = name.below.get(part)
        if child is None:
            row = lower.find(b"/".join(path[: i + 1]))
            if row is not None and not lower.is_dir(row):
                raise SourceError(f"{shown(b'/'.join(path[: i + 1]))} is not a directory")
            child = name.below[part] = _Name(_IMPLIED, ROOT)
        elif not child.tree.is_dir(child.row):
            raise SourceError(f"{shown(b'/'.join(path[: i + 1]))} is not a directory")
        name = child
    return name


def _merge(into: _Name, moved: _Name) -> None:
    for text, name in moved.below.items():
        old = into.below.get(text)
        both = old is not None and old.tree.is_dir(old.row) and name.tree.is_dir(name.row)
        if old is not None and both:
            if not name.is_implied:
                old.tree, old.row = name.tree, name.row
            _merge(old, name)
        else:
            into.below[text] = name
