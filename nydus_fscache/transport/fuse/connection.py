"""Descriptors of /dev/fuse: each is a connection, one for a mount, and ends with its superblock.

As long as any process holds one, its readers wait, and nothing fails.  Source: reference
stock-kernels 4.1; fs/fuse/dev.c.
"""

from __future__ import annotations

import itertools
import os
import select
from collections.abc import Iterable
from enum import Enum

from nydus_fscache.errors import KernelRefused
from nydus_fscache.image.binding import Address

DEVICE = "/dev/fuse"
PREFIX = "fuse."  # of its name at the keeper, which knows what to do with it
FLAT, FLAT_NODE = "flat", 2  # the file of csrc/core/fuse_flat.c
_SHAPES = 4  # a connection's number says its shape: its rest by this


class Shape(Enum):
    """What is mounted for an image; the values are names of transports."""

    FILE = "fuse-file"  # EROFS on files of FUSE: Linux 6.12
    LOOP = "fuse-loop"  # EROFS on loop devices on such files: Linux 5.15
    TREE = "fuse-tree"  # FUSE itself

    @property
    def _rest(self) -> int:
        return [Shape.FILE, Shape.LOOP, Shape.TREE].index(self) + 1

    def has(self, number: int) -> bool:
        """Is a connection of this number one of these?"""
        return number > 0 and number % _SHAPES == self._rest

    def free_number(self, taken: Iterable[int]) -> int:
        used = set(taken)
        return next(n for n in itertools.count(self._rest, _SHAPES) if n not in used)


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


def node_of(oid: int) -> int:
    """Of the file that is an object (csrc/core/fuse_files.c)."""
    return oid + 1


def number_of(address: Address) -> int:
    """The number of an image's connection; 0: the address has none."""
    text = address.get("number", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0


def number_of_name(name: str) -> int:
    """The same of a name at the keeper."""
    return number_of({"number": name.removeprefix(PREFIX)}) if name.startswith(PREFIX) else 0
