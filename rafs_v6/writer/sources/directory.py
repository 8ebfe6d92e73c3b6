"""A directory as a tree.  File data are not read here, only found."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from rafs_v6._writer import ffi, lib
from rafs_v6.errors import shown
from rafs_v6.writer.errors import SourceError
from rafs_v6.writer.tree import NONE, ROOT, Node, Tree, check_name, check_node
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
        scan = ffi.gc(lib.rafs_scan_new(), lib.rafs_scan_free)
        if scan == ffi.NULL:
            raise MemoryError("a directory")
        while pending:
            where, parent = pending.pop()
            self._scan(scan, where)
            special = bytes(ffi.buffer(scan.is_special, scan.n))
            first = tree.add_entries(parent, scan)
            directories = []
            at = special.find(1)
            while at >= 0:
                row = first + at
                path = where + b"/" + tree.name(row)
                if self._look_again(path, row, seen):
                    directories.append((path, row))
                at = special.find(1, at + 1)
            pending += reversed(directories)

    def _scan(self, scan: Any, where: bytes) -> None:
        error = -lib.rafs_scan_directory(scan, where)
        if not error:
            return
        if scan.failed == NONE:
            raise OSError(error, os.strerror(error), where)
        start = scan.name_end[scan.failed - 1] if scan.failed else 0
        name = bytes(ffi.buffer(scan.names + start, scan.name_end[scan.failed] - start))
        check_name(name, where)
        raise OSError(error, os.strerror(error), where + b"/" + name)

    def _look_again(self, path: bytes, row: int, seen: dict[tuple[int, int], int]) -> bool:
        """What the scan does not tell of an entry; is it a directory?"""
        tree, st = self.tree, os.lstat(path)
        is_dir = stat.S_ISDIR(tree.mode[row])
        if stat.S_IFMT(st.st_mode) != stat.S_IFMT(tree.mode[row]):
            raise SourceError(f"{shown(path)}: changed while it was read")
        if st.st_nlink > 1 and not is_dir:
            key = (st.st_dev, st.st_ino)
            first = seen.setdefault(key, row)
            if first != row:
                tree.make_link(row, first)
                return False
        tree.describe(row, self._node(path, st, os.listxattr(path, follow_symlinks=False)))
        return is_dir

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
