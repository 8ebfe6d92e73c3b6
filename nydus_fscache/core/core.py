"""The C core (csrc/core/core.h) for Python: events in, fills out; no policy.

Every call that can take more than microseconds releases the GIL.  A negative
errno of C becomes ``OSError``.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from typing import Any

from nydus_fscache._core import ffi, lib
from nydus_fscache.core.events import (
    Event,
    Inherited,
    Opened,
    Stats,
    TraceEntry,
    event_of,
    opened_of,
)

_BATCH = 64
_NO_CHUNK = 0xFFFFFFFF


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def read_heads(fd: int, offsets: Sequence[int]) -> bytes:
    """The first 8 bytes at each offset of a file, zeros where there are not so many."""
    heads = ffi.new("uint64_t[]", len(offsets))
    lib.nf_read_heads(fd, list(offsets), len(offsets), heads)
    return bytes(ffi.buffer(heads))


class Core:
    """One event core.  Thread-safe."""

    def __init__(self, journal: mmap.mmap | memoryview, *, no_uring: bool = False) -> None:
        """``journal``: shared memory that ``format_journal`` has prepared."""
        self._journal = ffi.from_buffer("uint8_t[]", journal)
        flags = lib.NF_NO_URING if no_uring else 0
        self._core = lib.nf_core_new(self._journal, len(journal), flags)
        if self._core == ffi.NULL:
            raise OSError(errno.EPROTO, "the journal is not of this version")
        self._events = ffi.new("struct nf_event[]", _BATCH)
        self._pages: dict[int, Any] = {}
        self._asked: dict[int, Any] = {}
        self._trees: dict[int, tuple[Any, Any]] = {}  # by connection: what C was handed
        self.started = False

    @staticmethod
    def journal_size(slots: int) -> int:
        return lib.nf_journal_size(slots)

    @staticmethod
    def format_journal(memory: mmap.mmap | memoryview, slots: int) -> None:
        _checked(lib.nf_journal_format(ffi.from_buffer(memory), len(memory), slots))

    # -- life ----------------------------------------------------------------------------------

    def attach_fanotify(self, group: int) -> None:
        """Serve the events of a non-blocking pre-content group; before or after ``start``."""
        _checked(lib.nf_core_attach_fanotify(self._core, group))

    def attach_cachefiles(self, device: int) -> None:
        """Serve the messages of a bound /dev/cachefiles."""
        _checked(lib.nf_core_attach_cachefiles(self._core, device))

    def attach_fuse(self, connection: int, fd: int) -> None:
        """Serve a FUSE connection that is mounted, under a number of its own; ``fd``, which is
        non-blocking, stays open until ``detach_fuse``."""
        _checked(lib.nf_core_attach_fuse(self._core, connection, fd))

    def attach_fuse_flat(
        self, connection: int, fd: int, objects: Sequence[int], starts: Sequence[int]
    ) -> None:
        """The same of a connection with one file, ``flat``: each of ``objects`` (numbers) from the
        byte of ``starts`` on.  Without any: they come by another call, with ``fd`` -1."""
        held = ffi.new("uint32_t[]", list(objects)), ffi.new("uint64_t[]", list(starts))
        _checked(
            lib.nf_core_attach_fuse_flat(self._core, connection, fd, *held, len(held[0]))
        )
        if objects:
            self._trees[connection] = held

    def attach_fuse_tree(
        self, connection: int, fd: int, image: mmap.mmap | bytes | None, objects: Sequence[int]
    ) -> None:
        """The same of a connection that shows the tree of a validated bootstrap, whose blobs are
        ``objects`` by number, in the order of the device table.  No image: it comes by another
        call, with ``fd`` -1."""
        held = (
            ffi.NULL if image is None else ffi.from_buffer("uint8_t[]", image),
            ffi.new("uint32_t[]", list(objects)),
        )
        length = 0 if image is None else len(image)
        _checked(
            lib.nf_core_attach_fuse_tree(
                self._core, connection, fd, held[0], length, held[1], len(objects)
            )
        )
        if image is not None:
            self._trees[connection] = held

    def detach_fuse(self, connection: int) -> None:
        _checked(lib.nf_core_detach_fuse(self._core, connection))
        if connection in self._trees:
            image, _objects = self._trees.pop(connection)
            ffi.release(image)

    def hold_fuse(self, *, hold: bool) -> None:
        """Do READs of objects that are not known wait for them, or get EIO?"""
        _checked(lib.nf_core_fuse_hold(self._core, int(hold)))

    def look_again(self) -> None:
        """Objects have come that FUSE READs may wait for."""
        _checked(lib.nf_core_fuse_look_again(self._core))

    def keep_by(self, keeper: int) -> None:
        """The socket that new descriptors of cachefiles go to the keeper by (``Handover.direct``).
        Python keeps them too: this is only sooner."""
        _checked(lib.nf_core_keep_by(self._core, keeper))

    def settle(self, *, all_served: bool) -> int:
        """Take up what a predecessor left open; after all objects were added, before ``start``.

        ``all_served``: no mount of before is without its objects; else what cannot be told
        apart gets EIO.
        """
        return _checked(lib.nf_core_settle(self._core, int(all_served)))

    def start(self) -> None:
        _checked(lib.nf_core_start(self._core))
        self.started = True

    def stop(self) -> None:
        """Read no more events; what is open stays in the journal."""
        _checked(lib.nf_core_stop(self._core))
        self.started = False

    def close(self) -> None:
        """Stop, and give everything back; for a core that is not the daemon's, which ends with its
        process.  No call may follow, and none be under way."""
        self.stop()
        lib.nf_core_free(self._core)
        trees = (image for image, _ in self._trees.values())
        for held in (*self._pages.values(), *self._asked.values(), *trees, self._journal):
            ffi.release(held)

    # -- objects -------------------------------------------------------------------------------

    def add_object(
        self,
        oid: int,
        dev: int,
        ino: int,
        fill_fd: int,
        size: int,
        pages: mmap.mmap,
        *,
        aligned: bool = False,
    ) -> None:
        """``pages``: the presence bitmap, kept until ``remove_object``."""
        held = ffi.from_buffer("uint8_t[]", pages)
        _checked(lib.nf_object_add(self._core, oid, dev, ino, fill_fd, size, held, int(aligned)))
        self._pages[oid] = held

    def bind_kernel(self, oid: int, kernel_object: int, fd: int) -> None:
        _checked(lib.nf_object_bind_kernel(self._core, oid, kernel_object, fd))

    def remove_object(self, oid: int) -> None:
        """Who still waits for it gets EIO.  Fills must have returned."""
        _checked(lib.nf_object_remove(self._core, oid))
        ffi.release(self._pages.pop(oid))
        if oid in self._asked:
            ffi.release(self._asked.pop(oid))

    def watch(self, oid: int, asked: mmap.mmap) -> None:
        """Note in ``asked``, a bitmap as the presence bitmap, which pages requests are for from now
        on; kept until ``remove_object``."""
        held = ffi.from_buffer("uint8_t[]", asked)
        _checked(lib.nf_object_watch(self._core, oid, held))
        self._asked[oid] = held

    def mark(self, oid: int, off: int) -> None:
        """Ask for one ``ReadaheadHit`` when a request first touches the page of ``off``."""
        _checked(lib.nf_object_mark(self._core, oid, off))

    # -- events --------------------------------------------------------------------------------

    def next(self, timeout_ms: int) -> list[Event]:
        """What C could not answer alone, oldest first; for one caller at a time."""
        count = lib.nf_core_next(self._core, self._events, _BATCH, timeout_ms)
        return [event_of(self._events[i]) for i in range(count)]

    # -- fills ---------------------------------------------------------------------------------

    def fill(
        self,
        oid: int,
        blob: Any,
        unit: int,
        count: int,
        stored: memoryview,
        stored_off: int,
    ) -> tuple[int, int, int | None]:
        """Decode, verify and write units from stored bytes that begin at ``stored_off``.

        Returns (units done, errno or 0, the chunk that is bad or None).
        """
        error, bad_chunk = ffi.new("int *"), ffi.new("uint32_t *")
        with ffi.from_buffer("uint8_t[]", stored) as data:
            done = lib.nf_fill(
                self._core, oid, blob, unit, count, data, stored_off, len(stored), error, bad_chunk
            )
        bad = None if bad_chunk[0] == _NO_CHUNK else int(bad_chunk[0])
        return done, -error[0], bad

    def fill_flat(self, oid: int, off: int, data: bytes) -> None:
        """Write plain flat bytes at a page-aligned offset."""
        with ffi.from_buffer("uint8_t[]", data) as plain:
            _checked(lib.nf_fill_flat(self._core, oid, off, plain, len(data)))

    def filled(self, oid: int, off: int, length: int) -> None:
        """Pages of flat bytes [off, off + length) are in the file already, and verified."""
        _checked(lib.nf_filled(self._core, oid, off, length))

    def unfill(self, oid: int, off: int, length: int) -> None:
        """Pages of flat bytes [off, off + length) may be lost: their next reader misses."""
        _checked(lib.nf_unfill(self._core, oid, off, length))

    def trim(self) -> None:
        """Give back the memory that fills keep for the next ones."""
        lib.nf_fill_trim(self._core)

    def fail(self, oid: int, off: int, length: int, error: int) -> None:
        """Who waits for any of [off, off + length) and is not satisfied gets ``error``."""
        lib.nf_fail(self._core, oid, off, length, error)

    def expire(self, age_s: float, error: int) -> int:
        return lib.nf_expire(self._core, int(age_s * 1e9), error)

    def copen(self, msg_id: int, size: int) -> None:
        """Answer an OPEN; ``OSError`` when the kernel does not take the answer (who waited for
        it was killed), and the object is not open."""
        _checked(lib.nf_cachefiles_copen(self._core, msg_id, size))

    def forget_kernel(self, kernel_object: int) -> None:
        """It is not open any more; after its descriptor was dropped at the keeper."""
        lib.nf_cachefiles_forget(self._core, kernel_object)

    def inherited(self, kind: Inherited) -> list[Opened]:
        """Without descriptors, which the keeper may have; before ``start``."""
        cursor, out = ffi.new("uint32_t *"), ffi.new("struct nf_event *")
        found = []
        while lib.nf_cachefiles_inherited(self._core, kind.value, cursor, out):
            found.append(opened_of(out))
        return found

    def resent(self) -> None:
        """The kernel sends again what was not answered; before ``settle``."""
        lib.nf_cachefiles_resent(self._core)

    # -- looking in ----------------------------------------------------------------------------

    def stats(self) -> Stats:
        s = ffi.new("struct nf_stats *")
        lib.nf_core_stats(self._core, s)
        return Stats(
            s.events,
            s.hits,
            s.misses,
            s.denied,
            s.pending,
            s.oldest_ns,
            s.wakeups,
            bool(s.uses_uring),
            s.waits_ns,
            tuple(s.waits),
        )

    def trace(self, entries: int) -> None:
        """Record up to so many requests from now on; 0 ends it."""
        _checked(lib.nf_trace_enable(self._core, entries))

    def read_trace(self, limit: int) -> list[TraceEntry]:
        out = ffi.new("struct nf_trace_entry[]", limit)
        count = lib.nf_trace_read(self._core, out, limit)
        return [
            TraceEntry(e.t_ns, e.object, e.off, e.len, e.pid, bool(e.hit))
            for e in (out[i] for i in range(count))
        ]
