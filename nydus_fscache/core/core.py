"""The C core (csrc/core/core.h) for Python: events in, fills out; no policy.

Every call that can take more than microseconds releases the GIL.  A negative
errno of C becomes ``OSError``.
"""

from __future__ import annotations

import errno
import mmap
import os
from dataclasses import dataclass
from enum import Enum
from typing import Any

from nydus_fscache._core import ffi, lib
from nydus_fscache.core.park import Park
from rafs_v6._codec import ffi as codec_ffi
from rafs_v6._codec import lib as codec

JOURNAL_SLOTS = 4096
_BATCH = 64
_NO_CHUNK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Missed:
    """Somebody waits for flat bytes [off, off + len) of an object, which are not all there."""

    object: int
    off: int
    len: int
    pid: int


@dataclass(frozen=True, slots=True)
class Passed:
    """A reader crossed a read-ahead mark near ``off``; nobody waits."""

    object: int
    off: int


@dataclass(frozen=True, slots=True)
class Opened:
    """cachefiles OPEN: to be answered with ``Core.copen``; ``fd`` is the receiver's."""

    msg_id: int
    kernel_object: int
    fd: int
    volume: str
    cookie: str


@dataclass(frozen=True, slots=True)
class Closed:
    """cachefiles CLOSE: the object is to be removed."""

    object: int


@dataclass(frozen=True, slots=True)
class Broken:
    """The transport's descriptor failed with ``errno``."""

    errno: int


@dataclass(frozen=True, slots=True)
class Lost:
    """A cachefiles READ of an object that is not known: its reader waits, and cannot be told."""


class Left(Enum):
    """What a predecessor may have left on record of cachefiles: OPENs that it may not have
    answered, CLOSEs that it had not seen to, objects that it had open."""

    ASKED = lib.NF_EV_OPEN
    CLOSED = lib.NF_EV_CLOSE
    OBJECTS = lib.NF_LEFT_OBJECT


Event = Missed | Passed | Opened | Closed | Broken | Lost


@dataclass(frozen=True, slots=True)
class Stats:
    """See ``struct nf_stats``."""

    events: int
    hits: int
    misses: int
    denied: int
    pending: int
    oldest_ns: int
    wakeups: int
    uses_uring: bool


@dataclass(frozen=True, slots=True)
class TraceEntry:
    """One request of the kernel; ``t_ns`` of CLOCK_BOOTTIME."""

    t_ns: int
    object: int
    off: int
    len: int
    pid: int
    hit: bool


def unit_columns(blob: Any, count: int) -> tuple[list[int], list[int], list[int]]:
    """Of each unit of a ``struct rafs_blob``: coff, clen, ulen (csrc/codec/rafs.h)."""
    if not count:
        return [], [], []
    record = codec_ffi.sizeof("struct rafs_unit")
    table = memoryview(codec_ffi.buffer(blob.units, count * record))
    at = {name: field.offset for name, field in codec_ffi.typeof("struct rafs_unit").fields}
    coff = table.cast("Q")[at["coff"] // 8 :: record // 8]
    words = table.cast("I")
    clen, ulen = (words[at[name] // 4 :: record // 4] for name in ("clen", "ulen"))
    return coff.tolist(), clen.tolist(), ulen.tolist()


def verify_chunk(blob: Any, chunk: int, data: bytes) -> bool:
    """Are these the plain bytes of a chunk, by its digest?"""
    with ffi.from_buffer("uint8_t[]", data) as plain:
        return bool(codec.rafs_chunk_verify(blob, chunk, plain) == 0)


def _opened(e: Any) -> Opened:
    volume = bytes(ffi.buffer(e.volume, e.volume_len)).decode("utf-8", "replace")
    cookie = bytes(ffi.buffer(e.cookie, e.cookie_len)).decode("utf-8", "replace")
    return Opened(e.msg_id, e.kernel_object, e.fd, volume, cookie)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def journal_memory(park: Park) -> mmap.mmap:
    """The event journal that a predecessor left, or a new one, which the keeper has then."""
    fd = park.take("journal")
    if fd is not None:
        return mmap.mmap(fd, 0)
    fd = os.memfd_create("nydus-fscache-journal", os.MFD_CLOEXEC)
    os.ftruncate(fd, Core.journal_size(JOURNAL_SLOTS))
    memory = mmap.mmap(fd, 0)
    Core.format_journal(memory, JOURNAL_SLOTS)
    park.keep("journal", fd)
    return memory


class Core:
    """One event core.  Thread-safe."""

    def __init__(self, journal: mmap.mmap, *, no_uring: bool = False) -> None:
        """``journal``: shared memory that ``format_journal`` has prepared."""
        self._journal = ffi.from_buffer("uint8_t[]", journal)
        flags = lib.NF_NO_URING if no_uring else 0
        self._core = lib.nf_core_new(self._journal, len(journal), flags)
        if self._core == ffi.NULL:
            raise OSError(errno.EPROTO, "the journal is not of this version")
        self._events = ffi.new("struct nf_event[]", _BATCH)
        self._pages: dict[int, Any] = {}
        self._asked: dict[int, Any] = {}
        self.started = False

    @staticmethod
    def journal_size(slots: int) -> int:
        return lib.nf_journal_size(slots)

    @staticmethod
    def format_journal(memory: mmap.mmap, slots: int) -> None:
        _checked(lib.nf_journal_format(ffi.from_buffer(memory), len(memory), slots))

    # -- life ----------------------------------------------------------------------------------

    def attach_fanotify(self, group: int) -> None:
        """Serve the events of a non-blocking pre-content group; before or after ``start``."""
        _checked(lib.nf_core_attach_fanotify(self._core, group))

    def attach_cachefiles(self, device: int) -> None:
        """Serve the messages of a bound /dev/cachefiles."""
        _checked(lib.nf_core_attach_cachefiles(self._core, device))

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
        """Ask for one ``Passed`` when a request first touches the page of ``off``."""
        _checked(lib.nf_object_mark(self._core, oid, off))

    # -- events --------------------------------------------------------------------------------

    def next(self, timeout_ms: int) -> list[Event]:
        """What C could not answer alone, oldest first; for one caller at a time."""
        count = lib.nf_core_next(self._core, self._events, _BATCH, timeout_ms)
        return [self._event(self._events[i]) for i in range(count)]

    def _event(self, e: Any) -> Event:
        if e.type == lib.NF_EV_MISS:
            return Missed(e.object, e.off, e.len, e.pid)
        if e.type == lib.NF_EV_AHEAD:
            return Passed(e.object, e.off)
        if e.type == lib.NF_EV_OPEN:
            return _opened(e)
        if e.type == lib.NF_EV_CLOSE:
            return Closed(e.object)
        if e.type == lib.NF_EV_LOST:
            return Lost()
        return Broken(e.len)

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

    def left(self, kind: Left) -> list[Opened]:
        """Without descriptors, which the keeper may have; before ``start``."""
        cursor, out = ffi.new("uint32_t *"), ffi.new("struct nf_event *")
        found = []
        while lib.nf_cachefiles_left(self._core, kind.value, cursor, out):
            found.append(_opened(out))
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
