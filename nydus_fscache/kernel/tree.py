"""Mounts that others are to see: shared places, and FUSE.

Constants as in linux/mount.h.  ``KernelRefused`` and ``NotPrivileged`` as in mount.py.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from nydus_fscache.kernel.mountinfo import find_mount
from nydus_fscache.kernel.syscalls import libc, refuse

_NOSUID, _NODEV, _NOEXEC, _BIND, _SHARED = 2, 4, 8, 4096, 1 << 20


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
