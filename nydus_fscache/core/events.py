"""What the C core (csrc/core/core.h) tells: values, which hold nothing of C's memory."""

from __future__ import annotations

from enum import Enum
from typing import Any

from nydus_fscache._core import ffi, lib
from rafs_v6.values import dataclass


@dataclass(frozen=True, slots=True)
class ReadMiss:
    """Somebody waits for flat bytes [off, off + len) of an object, which are not all there.

    It is to be ended, by a fill or by ``Core.fail``: until then, others who ask for bytes within it
    wait and make no event."""

    object: int
    off: int
    len: int
    pid: int


@dataclass(frozen=True, slots=True)
class ReadaheadHit:
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
class DeviceError:
    """The transport's descriptor failed with ``errno``."""

    errno: int


@dataclass(frozen=True, slots=True)
class StaleRead:
    """A cachefiles READ of an object that is not known: its reader waits, and cannot be told."""


class Inherited(Enum):
    """What a predecessor may have left on record of cachefiles: OPENs that it may not have
    answered, CLOSEs that it had not seen to, objects that it had open."""

    ASKED = lib.NF_INHERITED_OPENS
    CLOSED = lib.NF_INHERITED_CLOSES
    OBJECTS = lib.NF_INHERITED_OBJECTS


Event = ReadMiss | ReadaheadHit | Opened | Closed | DeviceError | StaleRead


# Upper bounds of the classes of ``Stats.waits``, but the last, which has none; seconds.
WAIT_BOUNDS_S = tuple(2**i / 4000 for i in range(lib.NF_WAIT_CLASSES - 1))


@dataclass(frozen=True, slots=True)
class Stats:
    """See ``struct nf_stats``; ``waits``: by class, see ``WAIT_BOUNDS_S``."""

    events: int
    hits: int
    misses: int
    denied: int
    pending: int
    oldest_ns: int
    wakeups: int
    uses_uring: bool
    waits_ns: int
    waits: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TraceEntry:
    """One request of the kernel; ``t_ns`` of CLOCK_BOOTTIME."""

    t_ns: int
    object: int
    off: int
    len: int
    pid: int
    hit: bool


def opened_of(e: Any) -> Opened:
    """The same of one that is known to be an OPEN."""
    volume = bytes(ffi.buffer(e.volume, e.volume_len)).decode("utf-8", "replace")
    cookie = bytes(ffi.buffer(e.cookie, e.cookie_len)).decode("utf-8", "replace")
    return Opened(e.msg_id, e.kernel_object, e.fd, volume, cookie)


def event_of(e: Any) -> Event:
    """``e``: a ``struct nf_event`` that C has filled in."""
    if e.type == lib.NF_EV_MISS:
        return ReadMiss(e.object, e.off, e.len, e.pid)
    if e.type == lib.NF_EV_AHEAD:
        return ReadaheadHit(e.object, e.off)
    if e.type == lib.NF_EV_OPEN:
        return opened_of(e)
    if e.type == lib.NF_EV_CLOSE:
        return Closed(e.object)
    if e.type == lib.NF_EV_LOST:
        return StaleRead()
    return DeviceError(e.len)
