"""Random layers: a chain of parents, ``merge`` and an independent rule give one tree.

The rule is written down here a second time, over plain dictionaries of paths; ``NYDUS_EXAMPLES``
asks for more of them.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tar_kit import DIR, HARD, LINK, MTIME, member, tar

import rafs_v6
from rafs_v6.cli import main

_EXAMPLES = int(os.environ.get("NYDUS_EXAMPLES", "40"))


@dataclass(frozen=True)
class _Entry:
    """``number``: of the inode, so that names of one file can be told; ``implied``: not listed."""

    kind: str
    mode: int = 0o755
    owner: int = 0
    mtime: int = 0
    xattrs: tuple[tuple[str, str], ...] = ()
    data: str = ""
    number: int = 0
    implied: bool = False


_parts = st.sampled_from(["a", "b", "c", "l"])
_paths = st.lists(_parts, min_size=1, max_size=3).map(tuple)


@dataclass(frozen=True)
class _Op:
    path: tuple[str, ...]
    kind: str  # file, dir, link, hard, white, opaque
    mode: int
    owner: int
    xattr: str
    data: str
    slash: str
    to: tuple[str, ...]


_ops = st.builds(
    _Op, path=_paths,
    kind=st.sampled_from(["file", "file", "dir", "dir", "link", "hard", "white", "opaque"]),
    mode=st.sampled_from([0o700, 0o755, 0o1777, 0o444]), owner=st.sampled_from([0, 5, 70_000]),
    xattr=st.sampled_from(["", "1", "2"]), data=st.sampled_from(["", "x", "y" * 5000]),
    slash=st.sampled_from(["", "./", "/"]), to=_paths,
)  # fmt: skip


class _Refused(Exception):
    """No tree can be made of these layers."""


_layers = st.lists(st.lists(_ops, max_size=7), min_size=2, max_size=4)
_Tree = dict[tuple[str, ...], _Entry]


def _drop(tree: _Tree, path: tuple[str, ...], *, itself: bool = True) -> None:
    for other in [p for p in tree if p[: len(path)] == path and (itself or p != path)]:
        del tree[other]


class _Layer:
    """The members that make sense, as a tar and as a tree of what they say."""

    def __init__(self, ops: list[_Op], first_number: int) -> None:
        self.members: list[bytes] = []
        self.tree: _Tree = {(): _Entry("dir", implied=True)}
        self.white: list[tuple[str, ...]] = []
        self.opaque: set[tuple[str, ...]] = set()
        self._number = first_number
        for op in ops:
            self._add(op)

    def _resolve(self, path: tuple[str, ...]) -> tuple[str, ...] | None:
        """The directory ``path`` through links, made where it is missing; None below a file."""
        at: tuple[str, ...] = ()
        todo, links = list(path), 0
        while todo:
            part = todo.pop(0)
            entry = self.tree.get((*at, part))
            if entry is None:
                self._number += 1
                self.tree[*at, part] = _Entry("dir", implied=True, number=self._number)
            elif entry.kind == "link":
                links += 1
                if links > 40:
                    return None
                if entry.data.startswith("/"):
                    at = ()
                todo[:0] = entry.data.strip("/").split("/")
                continue
            elif entry.kind != "dir":
                return None
            at = (*at, part)
        return at

    def _add(self, op: _Op) -> None:
        before = dict(self.tree)
        parent = self._resolve(op.path[:-1])
        if parent is None:
            self.tree = before
            return
        path, name = (*parent, op.path[-1]), op.slash + "/".join(op.path)
        above = op.slash + "/".join([*op.path[:-1], ""])
        old = self.tree.get(path)
        self._number += 1
        attributes = _Entry(
            op.kind, op.mode, op.owner, MTIME,
            (("user.k", op.xattr),) if op.xattr else (), op.data, self._number,
        )  # fmt: skip
        given: dict[str, object] = {
            "mode": op.mode, "owner": op.owner,
            "xattrs": {"user.k": op.xattr} if op.xattr else {},
        }  # fmt: skip
        if op.kind == "white":
            self.white.append(path)
            self.members.append(member(f"{above}.wh.{op.path[-1]}"))
        elif op.kind == "opaque":
            self.opaque.add(parent)
            self.members.append(member(f"{above}.wh..wh..opq"))
        elif op.kind == "dir":
            if old is not None and old.kind != "dir":
                _drop(self.tree, path)
            self.tree[path] = replace(attributes, data="")
            self.members.append(member(name, DIR, **given))  # type: ignore[arg-type]
        elif op.kind == "hard":
            target = self.tree.get(op.to)
            through = any(self.tree.get(op.to[:i], attributes).kind == "link" for i in (1, 2))
            if target is None or target.kind == "dir" or (through and len(op.to) > 1):
                self.tree = before
                return
            _drop(self.tree, path)
            self.tree[path] = target
            self.members.append(member(name, HARD, link="/".join(op.to)))
        else:
            _drop(self.tree, path)
            if op.kind == "link":
                text = "/" + "/".join(op.to)
                self.tree[path] = replace(attributes, kind="link", mode=0o777, data=text)
                self.members.append(
                    member(name, LINK, link=text, **{**given, "mode": 0o777})  # type: ignore[arg-type]
                )
            else:
                self.tree[path] = attributes
                self.members.append(
                    member(name, data=op.data.encode(), **given)  # type: ignore[arg-type]
                )


def _follow(low: _Tree, up: _Layer) -> None:
    """What lies below a link of the lower tree in a directory that the layer does not list comes
    to lie where the link leads."""

    def hidden(path: tuple[str, ...]) -> bool:
        return any(
            path[:i] in up.white or path[: i - 1] in up.opaque for i in range(1, len(path) + 1)
        )

    def entry(path: tuple[str, ...]) -> _Entry | None:
        own = up.tree.get(path)
        below = None if hidden(path) else low.get(path)
        return below if own is None or (own.implied and below is not None) else own

    for _ in range(50):
        links = [
            p
            for p in sorted(up.tree, key=len)
            if up.tree[p].implied and (e := entry(p)) is not None and e.kind == "link"
        ]
        if not links:
            return
        start, at, hops = links[0], (), 0
        todo = list(start)
        while todo:
            part = todo.pop(0)
            found = entry((*at, part))
            if found is not None and found.kind == "link":
                hops += 1
                if hops > 40:
                    raise _Refused
                at, todo = (), [*found.data.strip("/").split("/"), *todo]
            elif found is not None and found.kind != "dir":
                raise _Refused
            else:
                at = (*at, part)
        moved = {p: e for p, e in up.tree.items() if p[: len(start)] == start}
        for i in range(1, len(at) + 1):
            up.tree.setdefault(at[:i], _Entry("dir", implied=True, number=-hash(at[:i])))
        for path in sorted(moved, key=len):
            del up.tree[path]
        for path in sorted(moved, key=len):
            to, new = (*at, *path[len(start) :]), moved[path]
            old = up.tree.get(to)
            if path == start or (old is not None and old.kind == "dir" and new.implied):
                continue
            if new.kind != "dir" or (old is not None and old.kind != "dir"):
                _drop(up.tree, to)
            up.tree[to] = new
        up.white = [(*at, *p[len(start) :]) if p[: len(start)] == start else p for p in up.white]
        up.opaque = {(*at, *p[len(start) :]) if p[: len(start)] == start else p for p in up.opaque}
    raise _Refused


def _over(low: _Tree, up: _Layer) -> _Tree:
    """Whiteouts hide what is below, then entries come; an implied one changes nothing."""
    out = dict(low)
    _follow(low, up)
    for path in up.opaque:
        if path in out and out[path].kind == "dir":
            _drop(out, path, itself=False)
    for path in up.white:
        _drop(out, path)
    for path in sorted(up.tree, key=len):
        entry, old = up.tree[path], out.get(path)
        if entry.kind != "dir" or (old is not None and old.kind != "dir"):
            _drop(out, path)
            old = None
        if not (entry.implied and old is not None):
            out[path] = entry
    return out


def _found(boot: Path, blobs: Path) -> dict[str, object]:
    image = rafs_v6.open(boot, blobs=blobs)
    groups: dict[int, int] = {}
    out: dict[str, object] = {}
    for path, inode in sorted(image.walk(), key=lambda item: item[0]):
        data = ""
        if inode.is_reg:
            data = image.read(path).decode()
        elif inode.is_symlink:
            data = image.bootstrap.read_link(inode).decode()
        out[path.decode()] = (
            inode.mode, inode.uid, inode.mtime, data,
            groups.setdefault(inode.nid, len(groups)),
            {k.decode(): v.decode() for k, v in image.bootstrap.xattrs(inode).items()},
        )  # fmt: skip
    return out


def _wanted(tree: _Tree) -> dict[str, object]:
    kinds = {"dir": stat.S_IFDIR, "file": stat.S_IFREG, "link": stat.S_IFLNK}
    groups: dict[int, int] = {}
    paths = {"/" + "/".join(path): entry for path, entry in tree.items()}
    return {
        path: (
            kinds[e.kind] | e.mode, e.owner, e.mtime, e.data,
            groups.setdefault(e.number, len(groups)), dict(e.xattrs),
        )
        for path, e in sorted(paths.items(), key=lambda item: item[0].encode())
    }  # fmt: skip


def _op(kind: str, path: str) -> _Op:
    return _Op(tuple(path.split("/")), kind, 0o700, 0, "", "", "", ("a",))


# a directory that takes something away, and in whose place come a file and another directory
@example(stack=[
    [_op("file", "b/a"), _op("file", "b/c/d")],
    [_op("white", "b/a"), _op("white", "b/c/d"), _op("file", "b/c/e"), _op("file", "b"),
     _op("dir", "b")],
])  # fmt: skip
@example(stack=[
    [_op("file", "b/a")],
    [_op("white", "b/a"), _op("file", "b"), _op("hard", "x"), _op("dir", "b"), _op("link", "b"),
     _op("dir", "b"), _op("file", "b/x")],
])  # fmt: skip
@settings(max_examples=_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(stack=_layers)
def test_parents_and_merge_are_the_rule(
    stack: list[list[_Op]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("layers")
    blobs = base / "blobs"
    blobs.mkdir()
    want: _Tree = {(): _Entry("dir", implied=True)}
    boots, chain, refused = [], None, False
    for i, ops in enumerate(stack):
        layer = _Layer(ops, 1000 * (i + 1))
        try:
            want = _over(want, layer)
        except _Refused:
            refused = True
        source, boot, over = base / f"{i}.tar", base / f"{i}.boot", base / f"{i}.chain"
        source.write_bytes(tar(*layer.members))
        create = ["create", "-t", "tar-rafs", "-D", str(blobs), str(source)]
        assert main([*create, "-B", str(boot)]) == 0
        boots.append(str(boot))
        parent = [] if chain is None else ["--parent-bootstrap", str(chain)]
        assert main([*create, "-B", str(over), *parent]) == refused
        chain = over
        if refused:
            break
    merged = base / "merged"
    assert main(["merge", "-B", str(merged), *boots]) == refused
    if refused:
        return
    expected = _wanted(want)
    assert _found(merged, blobs) == expected
    assert chain is not None
    assert _found(chain, blobs) == expected
