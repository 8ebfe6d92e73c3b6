"""The event journal's memory (csrc/core/journal.h), which outlives the service."""

from __future__ import annotations

import ctypes
import mmap
import os

from nydus_fscache.core.core import Core
from nydus_fscache.core.park import Park
from nydus_fscache.kernel.syscalls import libc

JOURNAL_SLOTS = 4096


def journal_memory(park: Park) -> memoryview:
    """The event journal that a predecessor left, or a new one, which is parked then."""
    fd = park.take("journal")
    if fd is not None:
        return _mapped(fd)
    fd = os.memfd_create("nydus-fscache-journal", os.MFD_CLOEXEC)
    os.ftruncate(fd, Core.journal_size(JOURNAL_SLOTS))
    memory = _mapped(fd)
    Core.format_journal(memory, JOURNAL_SLOTS)
    park.keep("journal", fd)
    return memory


def _mapped(fd: int) -> memoryview:
    """All of it, for as long as the process lives.

    ``mmap.mmap`` would keep a copy of the descriptor.  Its number could be one that an answer is
    owed for: the C core could not keep it from new events then, and would have to fail its reader.
    """
    size = os.fstat(fd).st_size
    if not size:
        raise OSError(f"the journal is empty (descriptor {fd})")
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    )  # fmt: skip
    address = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")
