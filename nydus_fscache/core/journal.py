"""The event journal's memory (csrc/core/journal.h), which outlives the service."""

from __future__ import annotations

import mmap
import os

from nydus_fscache.core.core import Core
from nydus_fscache.core.park import Park

JOURNAL_SLOTS = 4096


def journal_memory(park: Park) -> mmap.mmap:
    """The event journal that a predecessor left, or a new one, which is parked then."""
    fd = park.take("journal")
    if fd is not None:
        return mmap.mmap(fd, 0)
    fd = os.memfd_create("nydus-fscache-journal", os.MFD_CLOEXEC)
    os.ftruncate(fd, Core.journal_size(JOURNAL_SLOTS))
    memory = mmap.mmap(fd, 0)
    Core.format_journal(memory, JOURNAL_SLOTS)
    park.keep("journal", fd)
    return memory
