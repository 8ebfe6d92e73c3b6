"""Mounts that show what is mounted elsewhere: shared places, FUSE, id-mapped clones.

Constants as in linux/mount.h.  ``KernelRefused`` and ``NotPrivileged`` as in mount.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

from nydus_fscache.kernel.mount import MOVE_MOUNT_F_EMPTY_PATH
from nydus_fscache.kernel.mountinfo import find_mount
from nydus_fscache.kernel.syscalls import AT_FDCWD, libc, refuse, syscall

_NOSUID, _NODEV, _NOEXEC, _BIND, _SHARED = 2, 4, 8, 4096, 1 << 20
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_AT_EMPTY_PATH, _ATTR_IDMAP = 0x1000, 0x100000


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def share(directory: Path) -> None:
    """Make ``directory`` a mount whose later mounts are seen in mount namespaces made from now."""
    name = os.fsencode(directory)
    # os.path.ismount sees no bind within one file system
    if find_mount(directory) is None and libc.mount(name, name, None, _BIND, None) < 0:
        refuse(f"bind {directory}", ctypes.get_errno())
    if libc.mount(None, name, None, _SHARED, None) < 0:
        refuse(f"make {directory} shared", ctypes.get_errno())


def mount_fuse(device: int, at: Path, source: str) -> None:
    """For all users; permissions are the server's business."""
    data = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    flags = _NOSUID | _NODEV | _NOEXEC
    if libc.mount(source.encode(), os.fsencode(at), b"fuse", flags, data.encode()) < 0:
        refuse(f"mount FUSE at {at}", ctypes.get_errno(), hint="modprobe fuse")


def clone_idmapped(source: Path, userns: int, target: Path) -> None:
    """Show the mount ``source`` at ``target`` with owners as the user namespace maps them."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    tree = syscall(_SYS_OPEN_TREE, AT_FDCWD, os.fsencode(source), flags)
    if tree < 0:
        refuse(f"clone {source}", ctypes.get_errno())
    try:
        attr = _MountAttr(set=_ATTR_IDMAP, userns=userns)
        done = libc.syscall(
            ctypes.c_long(_SYS_MOUNT_SETATTR), ctypes.c_long(tree), b"",
            ctypes.c_long(_AT_EMPTY_PATH), ctypes.byref(attr), ctypes.c_size_t(ctypes.sizeof(attr)),
        )  # fmt: skip
        if done < 0:
            code = ctypes.get_errno()
            refuse("map the owners of an EROFS mount", code, hint="Linux 5.19 or later can")
        name = os.fsencode(target)
        if syscall(_SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, name, MOVE_MOUNT_F_EMPTY_PATH) < 0:
            refuse(f"mount at {target}", ctypes.get_errno())
    finally:
        with contextlib.suppress(OSError):
            os.close(tree)
