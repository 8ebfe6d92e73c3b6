"""A FUSE connection that outlives the process which serves it.

Requests are read into memory that the keeper holds too, one slot a thread: a request that left
the kernel's queue is on record before any code runs, and stays until its answer was written.  A
successor answers what it finds there, then goes on reading.  A second answer to a request is
refused by the kernel and harms nobody.  The descriptor of /dev/fuse is kept before it is mounted;
while anybody holds it, callers wait instead of seeing ENOTCONN.  The keeper lets go of it when it
could start no server for a while, and a successor makes another.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path

from nydus_fscache.handover.fail_pending import NAMES
from nydus_fscache.handover.link import Handover
from nydus_fscache.kernel.tree import mount_fuse
from nydus_fscache.runtimes.store import wire
from nydus_fscache.runtimes.store.wire import SLOT, Request
from nydus_fscache.transport.fuse.connection import is_alive, open_device

log = logging.getLogger("store")

SLOTS = "names.requests"  # at the keeper, as NAMES
WORKERS = 8  # lookups may wait for a registry; each has a slot

Handler = Callable[[Request], bytes]


class Connection:
    """``handle`` returns the body of an answer, or raises ``OSError`` with an errno."""

    def __init__(self, handover: Handover) -> None:
        device, memory = handover.take(NAMES), handover.take(SLOTS)
        self.is_new = device is None or memory is None or not is_alive(device)
        if device is None or memory is None or self.is_new:
            memory = os.memfd_create("requests", os.MFD_CLOEXEC)
            os.ftruncate(memory, WORKERS * SLOT)
            device = open_device()
            os.set_blocking(device, True)  # each thread waits in its read
            handover.keep(SLOTS, memory)
            handover.keep(NAMES, device)
        self._device = device
        self._memory = memoryview(mmap.mmap(memory, WORKERS * SLOT))

    def mount(self, at: Path) -> None:
        """Of a new one: when all is there to serve it."""
        mount_fuse(self._device, at, "nydus-fscache")

    def serve(self, handle: Handler, on_unmounted: Callable[[], object]) -> None:
        """In threads; returns at once.  ``on_unmounted``: called by each when nobody can ask."""
        for number in range(WORKERS):
            slot = self._memory[number * SLOT : (number + 1) * SLOT]
            threading.Thread(
                target=self._work, args=(slot, handle, on_unmounted), name=f"names-{number}",
                daemon=True,
            ).start()

    def _work(
        self, slot: memoryview, handle: Handler, on_unmounted: Callable[[], object]
    ) -> None:
        if wire.is_open(slot):
            log.info("answering a request that a predecessor had taken")
            self._answer(slot, handle)
        while True:
            slot[: wire.IN_SIZE] = bytes(wire.IN_SIZE)
            try:
                os.readv(self._device, [slot])
            except OSError as e:
                if e.errno == errno.ENODEV:
                    on_unmounted()
                    return
                if e.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):  # ENOENT: it was given up
                    continue
                log.error("reading requests: %s", e.strerror)
                return
            self._answer(slot, handle)

    def _answer(self, slot: memoryview, handle: Handler) -> None:
        try:
            request = wire.parse(slot)
        except ValueError as e:
            log.error("not understood: %s", e)
            return
        try:
            data = wire.answer(request.unique, handle(request))
        except OSError as e:
            data = wire.failure(request.unique, e.errno or errno.EIO)
        except Exception:
            log.exception("request %d", request.op)
            data = wire.failure(request.unique, errno.EIO)
        if request.op not in wire.SILENT:
            with contextlib.suppress(OSError):  # ENOENT: the caller is gone, or has its answer
                os.write(self._device, data)
