"""Paths inside of an image, walked as a process with the image as its root would walk them.

Nothing leads out of the image: ``..`` of the root is the root, and an absolute target begins
there.  At most ``MAX_LINKS`` symbolic links are followed (the kernel's MAXSYMLINKS), so loops end.
"""

from __future__ import annotations

import errno
import os

from rafs_v6.reader.bootstrap import Bootstrap
from rafs_v6.reader.inode import Inode

MAX_LINKS = 40


def raw_path(path: str | bytes) -> bytes:
    """A path as the image has it: a ``str`` is UTF-8, with surrogates for other bytes."""
    return path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape")


def path_error(number: int, path: str | bytes) -> OSError:
    """The ``OSError`` of that errno (``FileNotFoundError`` and so on), with the path."""
    return OSError(number, os.strerror(number), path)


def resolve(
    bootstrap: Bootstrap, path: str | bytes, *, follow: bool = True
) -> tuple[bytes, Inode]:
    """The path without links and dots, and its inode.

    ``follow``: a symbolic link as the last component is followed too; others always are.
    Raises ``FileNotFoundError``, ``NotADirectoryError``, and ``OSError`` (ELOOP) for more than
    ``MAX_LINKS`` links, each with ``path`` as its filename.
    """
    todo = _components(raw_path(path))
    trail: list[tuple[bytes, Inode]] = []
    links = 0
    while todo:
        name = todo.pop()
        parent = trail[-1][1] if trail else bootstrap.root
        if not parent.is_dir:
            raise path_error(errno.ENOTDIR, path)
        if name == b".":
            continue
        if name == b"..":
            del trail[-1:]
            continue
        inode = bootstrap.child(parent, name)
        if inode is None:
            raise path_error(errno.ENOENT, path)
        if inode.is_symlink and (todo or follow):
            links += 1
            if links > MAX_LINKS:
                raise path_error(errno.ELOOP, path)
            target = bootstrap.read_link(inode)
            if target.startswith(b"/"):
                trail.clear()
            todo += _components(target)
            continue
        trail.append((name, inode))
    return b"/" + b"/".join(name for name, _ in trail), trail[-1][1] if trail else bootstrap.root


def _components(path: bytes) -> list[bytes]:
    """In the order in which a stack gives them back; behind a last slash only directories are."""
    parts = [part for part in path.split(b"/") if part]
    if path.endswith(b"/"):
        parts.append(b".")
    return parts[::-1]
