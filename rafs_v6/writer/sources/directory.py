"""A directory as a tree.  File data are not read here, only found."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from rafs_v6.writer.errors import SourceError
from rafs_v6.writer.tree import ROOT, Node, Tree, check_name, check_node
from rafs_v6.writer.xattrs import LinuxXattrs, Warn


class DirectorySource:
    """The tree below ``path``; names of one inode become one file."""

    def __init__(self, path: Path, warn: Warn | None = None) -> None:
        self.top = os.fsencode(path)
        self._xattrs = LinuxXattrs()
        if not stat.S_ISDIR(os.stat(self.top).st_mode):
            raise SourceError(f"{path}: not a directory")
        self.tree = Tree()
        self._read()
        self._xattrs.report(warn)

    def data_at(self, extent: int) -> tuple[int, int]:
        raise AssertionError("files of a directory are opened by their paths")

    def _read(self) -> None:
        tree = self.tree
        seen: dict[tuple[int, int], int] = {}
        root = self._node(self.top, os.stat(self.top), os.listxattr(self.top))
        # The top directory's time is that of the copy, not that of the image (format.md 1.13).
        root.mtime = root.mtime_nsec = 0
        pending = [(self.top, tree.add(ROOT, b"", root))]
        while pending:
            where, parent = pending.pop()
            with os.scandir(where) as found:
                names = sorted(entry.name for entry in found)
            directories = []
            for name in names:
                check_name(name, where)
                path = where + b"/" + name
                st = os.lstat(path)
                is_dir = stat.S_ISDIR(st.st_mode)
                shared = st.st_nlink > 1 and not is_dir
                if shared:
                    key = (st.st_dev, st.st_ino)
                    if key in seen:
                        tree.add_link(parent, name, seen[key])
                        continue
                    seen[key] = len(tree)
                xattrs = os.listxattr(path, follow_symlinks=False)
                if stat.S_ISREG(st.st_mode) and not xattrs:
                    tree.add_file(
                        parent, name, st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, st.st_size
                    )
                    continue
                row = tree.add(parent, name, self._node(path, st, xattrs))
                if is_dir:
                    directories.append((path, row))
            pending += reversed(directories)

    def _node(self, path: bytes, st: os.stat_result, xattrs: list[str]) -> Node:
        shown_path = path[len(self.top) :] or b"/"
        seconds, nsec = divmod(st.st_mtime_ns, 10**9)
        node = Node(st.st_mode, st.st_uid, st.st_gid, seconds, nsec, rdev=st.st_rdev)
        if stat.S_ISLNK(st.st_mode):
            node.target = os.readlink(path)
        elif stat.S_ISREG(st.st_mode):
            node.size = st.st_size
        if xattrs:
            found = {
                os.fsencode(key): os.getxattr(path, key, follow_symlinks=path == self.top)
                for key in xattrs
            }
            node.xattrs = self._xattrs.of(found, shown_path)
        check_node(node, shown_path)
        return node
