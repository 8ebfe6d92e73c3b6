"""How fast a backend is: latency and bandwidth, estimated from its transfers, and the sizes that
follow from them.
"""

from __future__ import annotations

import threading
import time

from nydus_fscache.config.tuning import Tuning
from nydus_fscache.fetch.job import KIB, MAX_REQUEST, MIB

FIRST_WINDOW = 512 * KIB
MAX_WINDOW = 8 * MIB
MAX_IN_FLIGHT = 16 * MIB
MAX_GUESS = 4 * MIB
AT_ONCE_S = 0.5
WASTE_S, MAX_WASTE = 0.1, 10 * MIB  # of the link, for guesses before much was read
PREFETCH_REQUEST = MIB
LEAST_PIECE = MIB // 4
RATE_SAMPLE_S = 0.03
SURELY = 1.25  # times its rate, the link is kept busy
UNKNOWN_RATE = 100.0 * MIB  # of a link; an upper bound


class Link:
    """The way to the servers of one or more backends: latency (s) and bandwidth (bytes/s, of all
    transfers together), estimated as it runs.  ``wanted``, ``ahead``: bytes that readers wait for,
    and bytes of guesses and read-ahead, queued or under way.

    Thread-safe.  The latency follows fast answers quickly and slow ones slowly: a
    first byte that queued behind our own transfers says nothing about the distance.
    """

    def __init__(self) -> None:
        self.latency_s = 0.02
        self.rate = 50.0 * MIB
        self.is_sampled = False
        self.wanted = self.ahead = 0
        self._readers: dict[int, float] = {}  # when each was last seen
        self._lock = threading.Lock()
        self._active = 0  # transfers whose body is arriving
        self._busy_s = 0.0
        self._bytes = 0
        self._since = 0.0

    def ask(self, nbytes: int, *, ahead: bool) -> None:
        """So many are asked for, or (negative) are here or given up."""
        with self._lock:
            if ahead:
                self.ahead += nbytes
            else:
                self.wanted += nbytes

    def readers(self, who: int, now: float) -> int:
        """How many blobs readers wait for these days; ``who``: the number of one of them."""
        with self._lock:
            self._readers[who] = now
            if now - next(iter(self._readers.values())) > AT_ONCE_S:
                self._readers = {w: t for w, t in self._readers.items() if now - t <= AT_ONCE_S}
            return len(self._readers)

    def first_byte(self, seconds: float, now: float) -> None:
        with self._lock:
            weight = 2 if seconds < self.latency_s else 16
            self.latency_s += (seconds - self.latency_s) / weight
            self._pass(now)
            self._active += 1

    def received(self, nbytes: int, now: float) -> None:
        with self._lock:
            self._pass(now)
            self._bytes += nbytes
            if self._busy_s >= RATE_SAMPLE_S:
                sample = self._bytes / self._busy_s
                self.is_sampled = True
                # up at once: what is in flight is bounded by it, and so is the next sample
                self.rate += (sample - self.rate) / (1 if sample > self.rate else 4)
                self._bytes, self._busy_s = 0, 0.0

    def ended(self, now: float) -> None:
        with self._lock:
            self._pass(now)
            self._active -= 1

    def _pass(self, now: float) -> None:
        if self._active:
            self._busy_s += max(0.0, now - self._since)
        self._since = now


class Pace:
    """How a backend is asked over its link, as far as nothing else is configured."""

    def __init__(self, link: Link | None = None) -> None:
        self.tuning = Tuning()
        self.link = link or Link()

    @property
    def latency_s(self) -> float:
        return self.link.latency_s

    @property
    def rate(self) -> float:
        return self.link.rate

    def transfer(self) -> Transfer:
        return Transfer(self.link)

    def window(self) -> int:
        """Bytes that keep the link busy for two round trips."""
        return max(FIRST_WINDOW, min(MAX_WINDOW, int(2 * self.latency_s * self.rate)))

    def round_trip(self) -> int:
        """Bytes that the link could bring in the time of one round trip."""
        return min(MAX_GUESS, int(self.latency_s * self.rate))

    def spare(self) -> int:
        """Bytes of guesses that the link can take while a reader waits for a round trip: fewer
        while it is busy, for whomever."""
        trip = self.round_trip()
        return min(trip, max(0, 2 * trip - self.link.ahead - self.link.wanted))

    def may_waste(self, who: int = 0) -> int:
        """Bytes of guesses that may be unread, however little was read of the blob ``who``; those
        that are started at the same time share them."""
        most = max(MIB, min(MAX_WASTE, int(WASTE_S * self.rate)))
        return most // self.link.readers(who, time.monotonic())

    def in_flight(self) -> int:
        """Bytes of prefetch under way at once."""
        return max(FIRST_WINDOW, min(MAX_IN_FLIGHT, int(2 * self.latency_s * self.rate) + MIB // 4))

    def takes(self, size: int) -> float:
        """Seconds of the link, a lower bound."""
        return size / (SURELY * self.rate if self.link.is_sampled else UNKNOWN_RATE)

    def piece(self) -> int:
        """Bytes of prefetch in one request: a miss of its last unit waits for all of it."""
        merging = self.tuning.merging
        if merging is None:
            size = max(LEAST_PIECE, min(PREFETCH_REQUEST, self.in_flight() // 2))
        else:  # as nydusd rounds it
            size = PREFETCH_REQUEST if merging <= 1 else 1 << (merging - 1).bit_length()
            size = max(LEAST_PIECE, min(MAX_REQUEST, size))
        rate = self.tuning.bandwidth
        return min(size, max(LEAST_PIECE, rate)) if rate else size


class Transfer:
    """One request, as its link sees it; a context manager around it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._started = time.monotonic()
        self._arriving = False

    def received(self, nbytes: int) -> None:
        now = time.monotonic()
        if not self._arriving:
            self._arriving = True
            self._link.first_byte(now - self._started, now)
        self._link.received(nbytes, now)

    def __enter__(self) -> Transfer:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._arriving:
            self._link.ended(time.monotonic())
