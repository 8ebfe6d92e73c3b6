"""Logging that never blocks a reader.

Records go through a bounded queue to one thread that writes them; when the
queue is full a record is dropped and counted, and the count is logged once
there is room (design rule 7).  Nothing here formats credentials: callers pass
blob ids, sizes and errors only.
"""

from __future__ import annotations

import logging
import logging.handlers
import queue
import sys
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

QUEUE_RECORDS = 4096

_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s"


class _DroppingHandler(logging.handlers.QueueHandler):
    """Drops instead of waiting: a full disk or a stopped terminal must not stop a fill."""

    def __init__(self, records: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(records)
        self.dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1
            return
        if self.dropped:
            dropped, self.dropped = self.dropped, 0
            logging.getLogger("log").warning("%d log records were dropped", dropped)


@dataclass(slots=True)
class _Allowance:
    left: float
    since: float
    omitted: int = 0


class Sparingly:
    """A logger for what readers can cause in a loop: of each key ``BURST`` lines, then one each
    ``EVERY_S`` seconds, with the number of those left out.  Thread-safe."""

    BURST = 5
    EVERY_S = 5.0
    KEYS = 1024

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._lock = threading.Lock()
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()

    def __call__(self, level: int, key: str, message: str, *args: object) -> None:
        now = time.monotonic()
        with self._lock:
            allowance = self._allowances.setdefault(key, _Allowance(self.BURST, now))
            self._allowances.move_to_end(key)
            if len(self._allowances) > self.KEYS:
                self._allowances.popitem(last=False)
            regained = (now - allowance.since) / self.EVERY_S
            allowance.left = min(float(self.BURST), allowance.left + regained)
            allowance.since = now
            if allowance.left < 1:
                allowance.omitted += 1
                return
            allowance.left -= 1
            omitted, allowance.omitted = allowance.omitted, 0
        if omitted:
            message += " (%d like it left out)"
            args = (*args, omitted)
        self._logger.log(level, message, *args)


def start(level: str = "INFO") -> logging.handlers.QueueListener:
    """Route all logging to standard error; returns the listener, to be stopped at exit."""
    logging.raiseExceptions = False  # a log on a full disk loses records, not more than that
    records: queue.Queue[logging.LogRecord] = queue.Queue(QUEUE_RECORDS)
    writer = logging.StreamHandler(sys.stderr)
    writer.setFormatter(logging.Formatter(_FORMAT, "%Y-%m-%dT%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [_DroppingHandler(records)]
    root.setLevel(level)
    listener = logging.handlers.QueueListener(records, writer)
    listener.start()
    return listener
