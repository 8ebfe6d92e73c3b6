"""mount(2) of an overlay: flags and data as mount(8) would split them.

The kernel takes at most a page of data, so paths may be given relative to a directory.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from nydus_fscache.errors import UsageError
from nydus_fscache.kernel.syscalls import libc, refuse

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _SYNCHRONOUS, _REMOUNT, _MANDLOCK = 1, 2, 4, 8, 16, 32, 64
_DIRSYNC, _NOATIME, _NODIRATIME, _BIND, _REC = 128, 1024, 2048, 4096, 16384
_SILENT, _RELATIME, _STRICTATIME, _LAZYTIME = 1 << 15, 1 << 21, 1 << 24, 1 << 25
# word -> bits that it sets, bits that it clears (mount(8), mount(2))
FLAGS = {
    "defaults": (0, 0),
    "ro": (_RDONLY, 0), "rw": (0, _RDONLY),
    "nosuid": (_NOSUID, 0), "suid": (0, _NOSUID),
    "nodev": (_NODEV, 0), "dev": (0, _NODEV),
    "noexec": (_NOEXEC, 0), "exec": (0, _NOEXEC),
    "sync": (_SYNCHRONOUS, 0), "async": (0, _SYNCHRONOUS),
    "dirsync": (_DIRSYNC, 0), "remount": (_REMOUNT, 0),
    "mand": (_MANDLOCK, 0), "nomand": (0, _MANDLOCK),
    "noatime": (_NOATIME, 0), "atime": (0, _NOATIME),
    "nodiratime": (_NODIRATIME, 0), "diratime": (0, _NODIRATIME),
    "relatime": (_RELATIME, 0), "norelatime": (0, _RELATIME),
    "strictatime": (_STRICTATIME, 0), "nostrictatime": (0, _STRICTATIME),
    "lazytime": (_LAZYTIME, 0), "nolazytime": (0, _LAZYTIME),
    "silent": (_SILENT, 0), "loud": (0, _SILENT),
    "bind": (_BIND, 0), "rbind": (_BIND | _REC, 0),
}  # fmt: skip


READ_ONLY = _RDONLY


def mount_overlay(
    target: Path, flags: int, data: str, directory: str = "", source: str = "overlay"
) -> None:
    """``directory``: where relative paths of ``data`` begin; the process stays there.  ``source``:
    what mount tables show.

    Raises ``UsageError`` when the data are longer than the kernel takes, ``KernelRefused``.
    """
    encoded = os.fsencode(data)
    if len(encoded) >= os.sysconf("SC_PAGE_SIZE"):
        raise UsageError(
            f"options of {len(encoded)} bytes: the kernel takes less than a page",
            hint="use fewer layers, or shorter paths",
        )
    point = os.path.abspath(target)
    if directory:
        os.chdir(directory)
    if libc.mount(source.encode(), os.fsencode(point), b"overlay", flags, encoded):
        code = ctypes.get_errno()
        hints = {
            errno.EINVAL: "dmesg says which option it does not take",
            errno.ENOENT: f"do {point} and all directories of the options exist?",
        }
        refuse(f"mounting an overlay at {point}", code, hint=hints.get(code))
