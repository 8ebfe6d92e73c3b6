"""A directory as a tree.  File data are not read here, only found."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from rafs_v6.writer.errors import SourceError
from rafs_v6.writer.tree import ROOT, Node, Tree, check_name, check_node


class DirectorySource:
    """The tree below ``path``; names of one inode become one file."""

    def __init__(self, path: Path) -> None:
        self._top = os.fsencode(path)
        if not stat.S_ISDIR(os.stat(self._top).st_mode):
            raise SourceError(f"{path}: not a directory")
        self.tree = Tree()
        self._read()

    def open(self, path: bytes, extent: int) -> tuple[int, int]:
        fd = os.open(self._top + path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        return fd, extent

    def close_file(self, fd: int) -> None:
        os.close(fd)

    def _read(self) -> None:
        tree = self.tree
        seen: dict[tuple[int, int], int] = {}
        root = _node_of(self._top, os.stat(self._top))
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
                shared = stat.S_ISREG(st.st_mode) and st.st_nlink > 1
                if shared and key in seen:
                    tree.add_link(parent, name, seen[key])
                    continue
                row = tree.add(parent, name, _node_of(path, st))
                if shared:
                    seen[key] = row
                elif tree.is_dir(row):
                    directories.append((path, row))
            pending += reversed(directories)


def _node_of(path: bytes, st: os.stat_result) -> Node:
    seconds, nsec = divmod(st.st_mtime_ns, 10**9)
    node = Node(st.st_mode, st.st_uid, st.st_gid, seconds, nsec, rdev=st.st_rdev)
    if stat.S_ISLNK(st.st_mode):
        node.target = os.readlink(path)
    elif stat.S_ISREG(st.st_mode):
        node.size = st.st_size
    # System attributes of the file system's own (NFS, SMB ACLs) have no place in the format.
    for key in os.listxattr(path, follow_symlinks=False):
        name = os.fsencode(key)
        if not name.startswith(b"system.") or b"posix_acl" in name:
            node.xattrs[name] = os.getxattr(path, key, follow_symlinks=False)
    check_node(node, path)
    return node
