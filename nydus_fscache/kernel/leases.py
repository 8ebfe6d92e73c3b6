"""Does anybody, the kernel included, have a file open?  Asked by way of leases (fcntl(2))."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path


def try_write_lease(path: Path) -> bool:
    """Is nobody, the kernel included, using the file?

    A write lease is granted only when no other open of the file exists; EROFS
    keeps its backing files open for as long as the superblock lives, which may be
    longer than the mount (overlay, lazy unmount).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        return is_sole_open(fd)
    finally:
        os.close(fd)


def is_sole_open(fd: int) -> bool:
    """The same, asked of a descriptor: does nobody else have the file open?"""
    try:
        # Whoever opens the file while we have the lease makes the kernel signal us:
        # by default SIGIO, which would end the process.  SIGURG is ignored by default.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return False
    return True
