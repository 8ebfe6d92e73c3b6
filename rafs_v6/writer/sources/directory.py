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
        self._top = os.fsencode(path)
        self._xattrs = LinuxXattrs()
        if not stat.S_ISDIR(os.stat(self._top).st_mode):
            raise SourceError(f"{path}: not a directory")
        self.tree = Tree()
        self._read()
        self._xattrs.report(warn)

    def open(self, path: bytes, extent: int) -> tuple[int, int]:
        fd = os.open(self._top + path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        return fd, extent

    def close_file(self, fd: int) -> None:
        os.close(fd)

    def _read(self) -> None:
        tree = self.tree
        seen: dict[tuple[int, int], int] = {}
        root = self._node(self._top, b"/", os.stat(self._top))
        # The top directory's time is that of the copy, not that of the image (format.md 1.13).
        root.mtime = root.mtime_nsec = 0
        pending = [(self._top, tree.add(ROOT, b"", root))]
        while pending:
            where, parent = pending.pop()
            with os.scandir(where) as found:
                names = sorted(entry.name for entry in found)
            directories = []
            for name in names:
                check_name(name, where)
                path = os.path.join(where, name)
                st = os.lstat(path)
                key = (st.st_dev, st.st_ino)
                shared = st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode)
                if shared and key in seen:
                    tree.add_link(parent, name, seen[key])
                    continue
                row = tree.add(parent, name, self._node(path, path[len(self._top) :], st))
                if shared:
                    seen[key] = row
                elif tree.is_dir(row):
                    directories.append((path, row))
            pending += reversed(directories)

    def _node(self, path: bytes, shown_path: bytes, st: os.stat_result) -> Node:
        seconds, nsec = divmod(st.st_mtime_ns, 10**9)
        node = Node(st.st_mode, st.st_uid, st.st_gid, seconds, nsec, rdev=st.st_rdev)
        if stat.S_ISLNK(st.st_mode):
            node.target = os.readlink(path)
        elif stat.S_ISREG(st.st_mode):
            node.size = st.st_size
        found = {
            os.fsencode(key): os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
        }
        if found:
            node.xattrs = self._xattrs.of(found, shown_path)
        check_node(node, shown_path)
        return node
