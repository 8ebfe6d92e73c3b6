"""When to ask again, and how long to wait before: one place for all that speaks HTTP."""

from __future__ import annotations

import os
import threading

from nydus_fscache.errors import BackendError
from nydus_fscache.http.answer import StatusError
from nydus_fscache.http.wire import Deadline

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0


def between(least: float, most: float) -> float:
    """Some number, so that clients are spread; ``random`` costs the first mount a millisecond."""
    return least + (most - least) * int.from_bytes(os.urandom(2), "big") / 0xFFFF


class RetryPolicy:
    """Counts the failures of one read and sleeps between its attempts."""

    def __init__(self, deadline: Deadline, retries: int, closing: threading.Event) -> None:
        self._deadline = deadline
        self._retries = retries
        self._closing = closing
        self._failures = 0

    def failed(self, error: BackendError) -> None:
        """Return when the next attempt may start; raise ``error`` when there is none."""
        self._failures += 1
        if not error.retryable or self._failures > self._retries:
            raise error
        pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (self._failures - 1))
        pause *= between(0.5, 1.0)
        if isinstance(error, StatusError):
            pause = max(pause, error.retry_after_s)
        if pause >= self._deadline.left() or self._closing.wait(pause):
            raise error
