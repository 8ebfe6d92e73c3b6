"""Logging that never blocks a reader.

Records go through a bounded queue to one thread that writes them (targets.py); when the
queue is full a record is dropped and counted, and the count is logged once
there is room (design rule 7).  Lines of one kind that come too fast are left out and
counted, too.  Nothing here formats credentials: callers pass blob ids, sizes and errors only.

Events (``event``) go the same way into a file of their own, with every error.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nydus_fscache.log import targets

QUEUE_RECORDS = 4096

LEVEL = "NYDUS_FSCACHE_LOG"  # environment: DEBUG, INFO, WARNING or ERROR
RATE = "NYDUS_FSCACHE_LOG_RATE"  # lines of one kind a second, in the long run; 0: no limit
DEFAULT_RATE = 10.0
_BURST_S = 20.0  # of such lines that may come at once
_KINDS = 1024


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


class _RateLimit(logging.Filter):
    """Of lines that one place in the code writes: some at once, then ``rate`` a second.  Events
    are none of them; ``Sparingly`` is stricter, and knows what its lines are about."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self._rate = rate
        self._lock = threading.Lock()
        self._allowances: OrderedDict[tuple[str, int], _Allowance] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        if not self._rate or record.name == targets.EVENTS:
            return True
        now, burst = time.monotonic(), self._rate * _BURST_S
        with self._lock:
            kind = record.pathname, record.lineno
            allowance = self._allowances.setdefault(kind, _Allowance(burst, now))
            self._allowances.move_to_end(kind)
            if len(self._allowances) > _KINDS:
                self._allowances.popitem(last=False)
            allowance.left = min(burst, allowance.left + (now - allowance.since) * self._rate)
            allowance.since = now
            if allowance.left < 1:
                allowance.omitted += 1
                return False
            allowance.left -= 1
            omitted, allowance.omitted = allowance.omitted, 0
        if omitted:
            record.msg = f"{record.getMessage()} ({omitted} like it left out)"
            record.args = None
        return True


def event(kind: str, **fields: Any) -> None:
    """For ``nydus-fscache events``: ``fields`` are what JSON can say."""
    logging.getLogger(targets.EVENTS).info(kind, extra={"fields": fields})


def start(root: Path, level: str = "INFO") -> logging.handlers.QueueListener:
    """Route all logging to where the environment says; returns the listener, to be stopped at
    exit."""
    logging.raiseExceptions = False  # a log on a full disk loses records, not more than that
    records: queue.Queue[logging.LogRecord] = queue.Queue(QUEUE_RECORDS)
    first = _DroppingHandler(records)
    first.addFilter(_RateLimit(_rate()))
    logger = logging.getLogger()
    logger.handlers[:] = [first]
    logger.setLevel(level)
    logging.getLogger(targets.EVENTS).setLevel(logging.INFO)  # whatever the log leaves out
    text = targets.text_target(root, os.environ)
    listener = logging.handlers.QueueListener(records, text, targets.EventFile(root))
    listener.start()
    return listener


def _rate() -> float:
    try:
        return max(0.0, float(os.environ[RATE]))
    except (KeyError, ValueError):
        return DEFAULT_RATE
