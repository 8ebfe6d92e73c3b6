"""A tree out of rows of others, in the order of the format: columns are gathered in C."""

from __future__ import annotations

import stat
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from rafs_v6._writer import ffi, lib
from rafs_v6.writer.tree import NONE, ROOT, Tree, column_in_c

_Key = TypeVar("_Key")
# As they are in a source, but for the sets of xattrs, and ``at`` and ``size`` of directories.
_COLUMNS = ("mode", "uid", "gid", "mtime", "mtime_nsec", "size", "at", "xattr", "flags")
_SOURCES_MAX = 255
_TYPE_SHIFT = 12
_DIRECTORY = stat.S_IFDIR >> _TYPE_SHIFT


class _Rows:
    """Which row of which source each new row is, and what is not theirs."""

    def __init__(self) -> None:
        self.sources: list[Tree] = []
        self.row, self.which = array("I"), bytearray()
        self.parent, self.link = array("I"), array("I")
        self.name_off, self.names = array("I", [0]), bytearray()
        self.directories = array("I")  # row, first entry, entries
        self.lengths: list[int] = []  # of the sources
        self._known: list[array[int]] = []  # by source, the new row of each
        self._numbers: dict[int, int] = {}  # of sources, by identity

    def add(self, source: Tree, row: int, parent: int, name: bytes, *, is_dir: bool) -> int:
        number = self._numbers.get(id(source))
        if number is None:
            number = self._number(source)
        first = new = len(self.row)
        if not is_dir:
            row = source.link[row]
            known = self._known[number]
            first = known[row]
            if first == NONE:
                first = known[row] = new
        self.row.append(row)
        self.which.append(number)
        self.parent.append(parent)
        self.link.append(first)
        self.names += name
        self.name_off.append(len(self.names))
        return new

    def _number(self, source: Tree) -> int:
        number = self._numbers[id(source)] = len(self.sources)
        assert number < _SOURCES_MAX
        self.sources.append(source)
        self.lengths.append(len(source))
        self._known.append(array("I", b"\xff" * (4 * len(source))))
        return number

    def forget(self) -> None:
        """What is needed while rows are added only."""
        self._known.clear()


def ordered(
    top: _Key, origin: Callable[[_Key], tuple[Tree, int]],
    below: Callable[[_Key], Iterable[tuple[bytes, _Key]]], chunk_size: int, *, spend: bool = False,
) -> Tree:  # fmt: skip
    """A tree of rows of others, put in order.

    ``origin``: the tree and row that something is copied from; ``below``: the entries
    of a directory, in the order of their names.  ``spend``: the others are of no use afterwards.
    """
    rows = _Rows()
    rows.add(*origin(top), ROOT, b"", is_dir=True)
    pending = [(ROOT, top)]
    while pending:
        parent, key = pending.pop()
        directories = []
        first = len(rows.row)
        for name, child in below(key):
            source, row = origin(child)
            is_dir = source.mode[row] >> _TYPE_SHIFT == _DIRECTORY
            new = rows.add(source, row, parent, name, is_dir=is_dir)
            if is_dir:
                directories.append((new, child))
        count = len(rows.row) - first
        rows.directories.extend((parent, first if count else 0, count))
        pending += reversed(directories)
    rows.forget()
    if spend:
        for source in rows.sources:
            source.names, source.name_off = bytearray(), array("I")
            source.parent, source.link = array("I"), array("I")
    return _gathered(rows, chunk_size, spend=spend)


def _gathered(rows: _Rows, chunk_size: int, *, spend: bool) -> Tree:
    tree, sources = Tree(chunk_size), rows.sources
    for name in _COLUMNS:
        setattr(tree, name, _column(rows, [getattr(source, name) for source in sources]))
        if spend:
            for source in sources:
                setattr(source, name, array(getattr(source, name).typecode))
    if any(len(source.extents) for source in sources):
        for source, length in zip(sources, rows.lengths, strict=True):
            source.extents.frombytes(bytes(8 * (length - len(source.extents))))
        tree.extents = _column(rows, [source.extents for source in sources])
    tree.parent, tree.link = rows.parent, rows.link
    tree.name_off, tree.names = rows.name_off, rows.names
    _take_data(tree, rows)
    _take_xattrs(tree, rows)
    numbers = iter(rows.directories)
    for row, first, count in zip(numbers, numbers, numbers, strict=True):
        tree.at[row], tree.size[row] = first, count
    return tree


def _column(rows: _Rows, columns: Sequence[array[int]]) -> array[int]:
    n, width = len(rows.row), columns[0].itemsize
    out = array(columns[0].typecode, bytes(width * n))
    with (
        ffi.from_buffer("uint8_t[]", out) as to, column_in_c(rows.row) as numbers,
        column_in_c(rows.which) as which,
    ):  # fmt: skip
        for me, column in enumerate(columns):
            with ffi.from_buffer("uint8_t[]", column) as values:
                lib.rafs_build_gather(to, values, width, numbers, which, me, n)
    return out


def _take_data(tree: Tree, rows: _Rows) -> None:
    """Targets of links and chunks of files: all those of the sources, one behind the other."""
    first, *others = rows.sources
    tree.targets, tree.refs, tree.locations = first.targets, first.refs, first.locations
    if not others:
        return
    tree.targets, tree.refs = bytearray(first.targets), first.refs[:]
    tree.locations = first.locations.copy()
    for me, source in enumerate(others, 1):
        targets, refs = len(tree.targets), len(tree.refs)
        tree.targets += source.targets
        start = tree.locations.append(source.locations)
        tree.refs.extend(number + start for number in source.refs)
        with (
            column_in_c(tree.at) as at, column_in_c(tree.mode) as mode,
            column_in_c(rows.which) as which,
        ):  # fmt: skip
            lib.rafs_build_shift(at, mode, which, me, len(tree), targets, refs)


def _take_xattrs(tree: Tree, rows: _Rows) -> None:
    """In the order of their first use."""
    if all(len(source.xattr_sets) == 1 for source in rows.sources):
        return
    column, tree.xattr = tree.xattr, array("I", bytes(4 * len(tree)))
    found: dict[tuple[int, int], int] = {}
    for row, number in enumerate(column):
        if number:
            which = rows.which[row]
            if (which, number) not in found:
                tree.set_xattrs(row, rows.sources[which].xattr_sets[number])
                found[which, number] = tree.xattr[row]
            tree.xattr[row] = found[which, number]
