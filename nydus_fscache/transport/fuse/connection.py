"""Descriptors of /dev/fuse: each is a connection, one for a mount, and ends with its superblock.

As long as any process holds one, its readers wait, and nothing fails.  Source: reference
stock-kernels 4.1; fs/fuse/dev.c.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterable

from nydus_fscache.errors import KernelRefused
from nydus_fscache.image.binding import Address

DEVICE = "/dev/fuse"
PREFIX = "fuse."  # of its name at the keeper, which knows what to do with it


def open_device() -> int:
    """Not mounted yet.  Raises ``KernelRefused``."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        raise KernelRefused(f"cannot open {DEVICE}: {e.strerror}", hint="modprobe fuse") from e


def is_alive(fd: int) -> bool:
    """Is it mounted?  Neither before the mount nor after the end of the superblock."""
    poll = select.poll()
    poll.register(fd, 0)
    return not poll.poll(0)


def number_of(address: Address) -> int:
    """The number of an image's connection; 0: the address has none."""
    text = address.get("number", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0


def number_of_name(name: str) -> int:
    """The same of a name at the keeper."""
    return number_of({"number": name.removeprefix(PREFIX)}) if name.startswith(PREFIX) else 0


def free_number(taken: Iterable[int]) -> int:
    used = set(taken)
    return next(n for n in range(1, len(used) + 2) if n not in used)
