"""/dev/cachefiles and the descriptors of its objects: opened, bound, and looked at.

Source: reference kernel-transports 1.2 - 1.6.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path

from nydus_fscache.errors import KernelRefused

NAME = "cachefiles"  # of the transport
DESCRIPTOR = "cachefiles"  # the device's name at the keeper, which knows what to do with it
DEVICE = "/dev/cachefiles"
TAG = "nydus-fscache"
_BACKING_FILE_PATIENCE_S = 5.0
_OPEN_PATIENCE_S = 5.0
_RETRY_S = 0.02


def open_and_bind(directory: Path) -> int:
    """The device, bound to ``directory``; one opener at a time, so a successor may have to wait."""
    deadline = time.monotonic() + _OPEN_PATIENCE_S
    while True:
        try:
            device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
            break
        except OSError as e:
            if e.errno != errno.EBUSY or time.monotonic() > deadline:
                hint = "another daemon has it" if e.errno == errno.EBUSY else "modprobe cachefiles"
                raise KernelRefused(f"cannot open {DEVICE}: {e.strerror}", hint=hint) from e
        time.sleep(_RETRY_S)
    try:
        for command in (f"dir {directory}", f"tag {TAG}", "bind ondemand"):
            os.write(device, command.encode())
    except OSError as e:
        os.close(device)
        raise KernelRefused(
            f"cachefiles refused {command!r}: {e.strerror}",
            hint="it needs CONFIG_CACHEFILES_ONDEMAND and a directory on ext4, xfs or btrfs",
        ) from e
    return device


def has_file(fd: int) -> bool:
    """Has the kernel a file of the object, hence was its OPEN answered with yes?"""
    with contextlib.suppress(OSError):
        return os.lseek(fd, 0, os.SEEK_END) >= 0
    return False


def wait_for_backing_file(fd: int) -> None:
    """The kernel makes it only some time after copen; until then seeking is ENOBUFS."""
    deadline = time.monotonic() + _BACKING_FILE_PATIENCE_S
    while True:
        try:
            os.lseek(fd, 0, os.SEEK_DATA)
            return
        except OSError as e:
            if e.errno == errno.ENXIO:
                return
            if e.errno != errno.ENOBUFS or time.monotonic() > deadline:
                raise
        time.sleep(_RETRY_S)
