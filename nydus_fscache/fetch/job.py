"""What a fetch is: which stored bytes, how urgent, and whom it is for.

The queue (queue.py) and the receiver (receive.py) know a ``Target`` and nothing more of it, so
both can be tested with a target of a few lines; the real one is ``cache_object.CacheObject``.
"""

from __future__ import annotations

import enum
from dataclasses import field
from typing import Protocol

from nydus_fscache.backend.base import Backend
from nydus_fscache.fetch.read_times import ReadTimes
from rafs_v6.values import dataclass

KIB, MIB = 1 << 10, 1 << 20
MAX_REQUEST = 8 * MIB  # stored bytes


class Priority(enum.IntEnum):
    DEMAND = 0
    AHEAD = 1
    PREFETCH = 2


@dataclass(frozen=True, slots=True)
class Extent:
    """Units [unit, end) in stored bytes [off, end_off)."""

    unit: int
    end: int
    off: int
    end_off: int


@dataclass(frozen=True, slots=True)
class Source:
    """Where the stored bytes of a blob are: ``blob_id`` in ``backend``."""

    backend: Backend
    blob_id: str


@dataclass(slots=True)
class Counters:
    """What ``status`` shows of a blob.  ``fetched``: stored bytes received; ``reused``: stored
    bytes not received, because another blob here had the same chunks; ``recovered``: bytes found
    in the cache file but not recorded there, verified instead of fetched."""

    fetched: int = 0
    reused: int = 0
    recovered: int = 0
    requests: int = 0
    errors: int = 0
    last_error: str = ""
    times: ReadTimes = field(default_factory=ReadTimes)

    def add(self, other: Counters) -> None:
        for name in ("fetched", "reused", "recovered", "requests", "errors"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.times.add(other.times)


@dataclass(frozen=True, slots=True)
class Filled:
    """``done`` units are verified and written; ``error``: an errno for the next one, or 0;
    ``bad``: the part of it that is wrong, for messages."""

    done: int
    error: int = 0
    bad: str = "a unit"


class Target(Protocol):
    """Where fetched units go.  Thread-safe."""

    name: str
    counters: Counters

    @property
    def source(self) -> Source:
        """May change at any time, as images come and go."""
        ...

    def stored(self, unit: int) -> tuple[int, int]:
        """Stored bytes [off, end) of a unit."""
        ...

    def claim(self, first: int, end: int, limit: int) -> tuple[int, list[Extent]]:
        """For jobs that were not claimed when they were queued: about ``limit`` bytes of the
        missing ones of units [first, end), and the unit to go on with."""
        ...

    def reuse(self, extent: Extent) -> list[Extent]:
        """Take from this node what it has of a claimed extent; the rest, which is to be fetched.
        May raise ``OSError``: a write failed."""
        ...

    def fill(self, first: int, count: int, stored: memoryview, stored_off: int) -> Filled:
        """Decode, verify and write units out of stored bytes that begin at ``stored_off``."""
        ...

    def failed(
        self, first: int, end: int, error: int, reason: str, took_s: float = 0.0
    ) -> None:
        """Units [first, end) could not be had, after ``took_s``: free them, and tell the readers
        that wait for one."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """Fetch the units of ``extent``.  Demand has claimed them; the others claim when they start."""

    target: Target
    extent: Extent
    priority: Priority

    @property
    def size(self) -> int:
        return self.extent.end_off - self.extent.off


class JobSource(Protocol):
    """Prefetch that is not under way yet, made into jobs when there is room for them."""

    left: int  # stored bytes, at most
    at_once: int  # stored bytes that may be under way whatever the link: a program waits for them
    everything: bool  # of an image: no guess is wasted while it lasts

    def __next__(self) -> Job: ...
