"""One extent from its backend into its cache file: received, and filled unit by unit as it comes.

What is received is decoded, verified and written by the C core while the rest is
on its way.  A unit that does not verify costs its own readers only, and where
there is another way to the blob (see ``backend.route``) it is asked for again there.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable

from nydus_fscache.errors import BackendError
from nydus_fscache.fetch.job import MIB, Extent, Filled, Target
from nydus_fscache.fetch.pace import Pace
from nydus_fscache.log import Sparingly

log = logging.getLogger("fetch")
sparingly = Sparingly(log)

BUFFER = MIB // 2  # grows to the largest unit
JOB_DEADLINE_S = 60.0


class _WrongBytesHere(Exception):
    """The mirror or proxy served bad data, and the backend knows another way."""


class Receiver:
    """For one thread: its receive buffer, and how far its extent is done."""

    def __init__(self, disk_full: threading.Event) -> None:
        self._disk_full = disk_full
        self._buffer = bytearray()
        self._done = 0  # units before it are done with, whatever came of them
        self._started = 0.0

    def run(
        self,
        target: Target,
        extent: Extent,
        pace: Pace,
        arrived: Callable[[int], None] | None = None,
    ) -> None:
        """Never raises: what cannot be had is told to the object and logged.

        ``arrived`` is told the bytes as they come; without it, it is somebody's demand.
        """
        self._done = extent.unit
        self._started = time.monotonic()
        try:
            parts = target.reuse(extent)
        except OSError as e:
            self._failed(target, extent, e)
            return
        for part in parts:
            self._fetch(target, part, pace, arrived)
        if len(self._buffer) > BUFFER:
            self._buffer = bytearray()

    def _fetch(
        self, target: Target, extent: Extent, pace: Pace, arrived: Callable[[int], None] | None
    ) -> None:
        self._done = extent.unit
        source = target.source
        rest: Extent | None = extent
        try:
            while rest is not None:
                try:
                    self._receive(target, rest, pace, arrived)
                    rest = None
                except _WrongBytesHere:
                    off = target.stored(self._done)[0]
                    rest = Extent(self._done, extent.end, off, extent.end_off)
            if self._done != extent.end:
                raise BackendError("the extent ended before its units did")
        except Exception as e:  # a fault of ours must reach the reader as EIO, not as a hang
            if target.source is not source and self._done < extent.end:
                # its image was given up in the middle; another one goes on
                off = target.stored(self._done)[0]
                rest = Extent(self._done, extent.end, off, extent.end_off)
                self._fetch(target, rest, pace, arrived)
                return
            self._failed(target, extent, e)

    def _failed(self, target: Target, extent: Extent, error: Exception) -> None:
        """From the first unit on that is not done, the extent could not be had."""
        code, reason = errno.EIO, str(error)
        if isinstance(error, OSError) and not isinstance(error, BackendError):
            name = errno.errorcode.get(error.errno or 0, "?")
            reason = f"writing the cache file: {error.strerror or error} ({name})"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                code = errno.ENOSPC
                self._disk_full.set()
        elif not isinstance(error, BackendError):
            log.error("blob %s: fetch failed", target.name, exc_info=error)  # a fault of ours
            reason = f"internal error: {error!r}"
        last = extent.end - 1
        sparingly(
            logging.ERROR, target.name,
            "blob %s: units %d..%d: %s", target.name, self._done, last, reason,
        )  # fmt: skip
        took_s = time.monotonic() - self._started
        target.failed(self._done, extent.end, code, reason, took_s)

    def _make_room(self, target: Target, extent: Extent) -> None:
        """The buffer holds at least one unit, and no more than the extent or ``BUFFER`` need."""
        bounds = map(target.stored, range(extent.unit, extent.end))
        largest = max(end - off for off, end in bounds)
        room = max(largest, min(BUFFER, extent.end_off - extent.off))
        if room > len(self._buffer):
            self._buffer = bytearray(room)

    def _receive(
        self, target: Target, extent: Extent, pace: Pace, arrived: Callable[[int], None] | None
    ) -> None:
        """Stream the extent, filling units as soon as they are whole."""
        total = extent.end_off - extent.off
        last = extent.end - 1
        log.debug("blob %s: units %d..%d, %d bytes", target.name, extent.unit, last, total)
        self._make_room(target, extent)
        base, have, received = extent.off, 0, 0  # the buffer holds stored [base, base + have)
        started = time.monotonic()
        target.counters.requests += 1
        source = target.source
        with (
            pace.transfer() as transfer,
            memoryview(self._buffer) as view,
            source.backend.stream(
                source.blob_id,
                extent.off,
                total,
                deadline=started + JOB_DEADLINE_S,
                prefetch=arrived is not None,
            ) as stream,
        ):
            while received < total:
                if have == len(view):  # keep the part of the next unit, make room behind it
                    keep_from = min(have, target.stored(self._done)[0] - base)
                    left = have - keep_from
                    view[:left] = bytes(view[keep_from:have])
                    base, have = base + keep_from, left
                count = stream.readinto(view[have : min(len(view), have + total - received)])
                transfer.received(count)
                have += count
                received += count
                target.counters.fetched += count
                if arrived is not None:
                    arrived(count)
                if received == total:
                    took_s = time.monotonic() - started
                    target.counters.times.record(total, took_s, prefetch=arrived is not None)
                self._fill_whole_units(target, extent, view[:have], base, started)

    def _fill_whole_units(
        self, target: Target, extent: Extent, stored: memoryview, base: int, asked_at: float
    ) -> None:
        """``stored`` begins at byte ``base`` of the stored blob."""
        end = self._done
        while end < extent.end and target.stored(end)[1] <= base + len(stored):
            end += 1
        while self._done < end:
            first = self._done
            filled = target.fill(first, end - first, stored, base)
            self._done = first + filled.done
            if filled.error:
                self._refuse(target, filled, asked_at)

    def _refuse(self, target: Target, filled: Filled, asked_at: float) -> None:
        """A unit did not decode, verify or write."""
        error = filled.error
        if error not in (errno.EILSEQ, errno.EBADMSG):
            raise OSError(error, os.strerror(error))
        how = "does not match its digest" if error == errno.EILSEQ else "does not decode"
        reason = f"{filled.bad} {how}"
        if target.source.backend.mark_corrupt(target.source.blob_id, asked_at):
            sparingly(
                logging.WARNING, target.name, "blob %s: %s: asking the origin", target.name, reason
            )
            raise _WrongBytesHere
        sparingly(
            logging.ERROR, target.name, "blob %s: %s: its readers get EIO", target.name, reason
        )
        unit = self._done
        self._done = unit + 1
        target.failed(unit, unit + 1, errno.EIO, reason)
