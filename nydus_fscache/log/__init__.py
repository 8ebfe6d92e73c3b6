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
from pathlib import Path
from typing import Any, Generic, TypeVar

from nydus_fscache.log import targets
from rafs_v6.values import dataclass

QUEUE_RECORDS = 4096

LEVEL = "NYDUS_FSCACHE_LOG"  # environment: DEBUG, INFO, WARNING or ERROR
RATE = "NYDUS_FSCACHE_LOG_RATE"  # lines of one kind a second, in the long run; 0: no limit
DEFAULT_RATE = 10.0
_BURST_S = 20.0  # of such lines that may come at once
_KINDS = 1024
_Key = TypeVar("_Key")


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
    """``left`` of the lines that may come at once, as it was ``since`` then."""

    left: float
    since: float
    omitted: int = 0


class _Allowances(Generic[_Key]):
    """Of lines of each key: ``burst`` at once, then one each ``every_s`` seconds.  Thread-safe."""

    def __init__(self, burst: float, every_s: float) -> None:
        self._burst, self._every_s = burst, every_s
        self._lock = threading.Lock()
        self._by_key: OrderedDict[_Key, _Allowance] = OrderedDict()

    def take(self, key: _Key) -> int | None:
        """How many were left out before this one; None: it is left out, too."""
        now = time.monotonic()
        with self._lock:
            one = self._by_key.setdefault(key, _Allowance(self._burst, now))
            self._by_key.move_to_end(key)
            if len(self._by_key) > _KINDS:
                self._by_key.popitem(last=False)
            one.left = min(self._burst, one.left + (now - one.since) / self._every_s)
            one.since = now
            if one.left < 1:
                one.omitted += 1
                return None
            one.left -= 1
            omitted, one.omitted = one.omitted, 0
            return omitted


class Sparingly:
    """A logger for what readers can cause in a loop: of each key ``BURST`` lines, then one each
    ``EVERY_S`` seconds, with the number of those left out.  Thread-safe."""

    BURST = 5
    EVERY_S = 5.0

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._allowances: _Allowances[str] = _Allowances(self.BURST, self.EVERY_S)

    def __call__(self, level: int, key: str, message: str, *args: object) -> None:
        omitted = self._allowances.take(key)
        if omitted is None:
            return
        if omitted:
            message += " (%d like it left out)"
            args = (*args, omitted)
        self._logger.log(level, message, *args)


class _RateLimit(logging.Filter):
    """Of lines that one place in the code writes: some at once, then ``rate`` a second.  Events
    are none of them; ``Sparingly`` is stricter, and knows what its lines are about."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self._allowances: _Allowances[tuple[str, int]] | None = None
        if rate:
            self._allowances = _Allowances(rate * _BURST_S, 1 / rate)

    def filter(self, record: logging.LogRecord) -> bool:
        if self._allowances is None or record.name == targets.EVENTS:
            return True
        omitted = self._allowances.take((record.pathname, record.lineno))
        if omitted is None:
            return False
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
