"""Pages that are kept twice: by EROFS, and by the FUSE file or loop device's file below it.

The lower ones are dropped when all of an image is in its cache files, for then they save nothing
but a copy; again from time to time while they are read; and of all images when memory is short.

FUSE_NOTIFY_INVAL_INODE waits, unkillable, for pages that are just being read, which means for us:
so a process of its own says it (apart.py), and nobody waits for that.  Source: fs/fuse/inode.c,
fuse_reverse_inval_inode; linux/fuse.h.

usage: python -m nydus_fscache.transport.fuse.second_copies SERVICE_PID FD:NODE,NODE...
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import sys
from collections.abc import Callable, Collection

from nydus_fscache.kernel.pressure import memory_is_short
from nydus_fscache.transport import apart
from rafs_v6.values import dataclass

log = logging.getLogger("fuse")

AGAIN_S = 60.0
SHORT_PAUSE_S = 10.0
AT_ONCE = 64  # connections of one process
NOTIFY_INVAL_INODE = 2
# struct fuse_out_header (length, code, 0), fuse_notify_inval_inode_out (node, offset, length)
_NOTE = struct.Struct("=IiQQqq")


@dataclass(frozen=True, slots=True)
class Files:
    """Of an image: its connection's number and descriptor, the nodes of its files."""

    number: int
    device: int
    nodes: Collection[int]
    complete: bool


class SecondCopies:
    """For one thread."""

    def __init__(self, is_short: Callable[[], bool] = memory_is_short) -> None:
        self._is_short = is_short
        self._dropped: dict[int, float] = {}  # by number: when, of what was complete then
        self._read = -1  # messages, when that was looked at last
        self._short_since = float("-inf")
        self._process: apart.ProcessApart | None = None

    def look(self, images: Collection[Files], messages: int, now: float) -> None:
        """``images``: all that are mounted; ``messages``: how many there were ever; ``now``: in
        seconds of a clock that does not jump."""
        if self._process is not None:
            if self._process.process.poll() is None:
                return  # it waits for a page
            self._process.process.communicate()
            self._process = None
        if due := self._due(images, messages, now)[:AT_ONCE]:
            self._dropped |= {files.number: now for files in due if files.complete}
            self._process = drop(due)
            log.info("pages of %d images are kept once", len(due))

    def _due(self, images: Collection[Files], messages: int, now: float) -> list[Files]:
        numbers = {files.number for files in images if files.complete}
        self._dropped = {n: at for n, at in self._dropped.items() if n in numbers}
        if images and now - self._short_since >= SHORT_PAUSE_S and self._is_short():
            self._short_since = now
            return list(images)
        due = [f for f in images if f.complete and f.number not in self._dropped]
        if not due and messages != self._read:
            old = [f for f in images if now - self._dropped.get(f.number, now) >= AGAIN_S]
            if old:
                self._read = messages
            return old
        return due


def drop(images: Collection[Files]) -> apart.ProcessApart:
    """The process that does it: it ends when no page is being read any more."""
    words = [f"{files.device}:{','.join(map(str, files.nodes))}" for files in images]
    return apart.ProcessApart(__name__, words, [files.device for files in images])


def _drop(words: list[str]) -> None:
    for word in words:
        device, _, nodes = word.partition(":")
        for node in nodes.split(","):
            note = _NOTE.pack(_NOTE.size, NOTIFY_INVAL_INODE, 0, int(node), 0, 0)
            with contextlib.suppress(OSError):  # unmounted meanwhile, or never opened
                os.write(int(device), note)


if __name__ == "__main__":
    sys.exit(apart.run(_drop))
