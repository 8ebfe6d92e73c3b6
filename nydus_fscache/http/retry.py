"""When to ask again, and how long to wait before: one place for all HTTP backends."""

from __future__ import annotations

import random
import threading

from nydus_fscache.errors import BackendError
from nydus_fscache.http.pool import PooledResponse
from nydus_fscache.http.wire import Clock

RETRIES = 5
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0
_BUSY = frozenset((408, 425, 429, 500, 502, 503, 504))

_HINTS = {
    401: "wrong or missing credentials: docker login, IMAGE_PULL_AUTH, or auth in the backend",
    403: "the credentials do not allow it, or the host's clock is wrong",
    404: "is the image still there, under this name?",
    416: "the blob is shorter than the image says: it was cut or replaced",
    429: "the server limits its clients: log in, or use a mirror",
}


class StatusError(BackendError):
    """An answer that is not the data."""

    def __init__(self, what: str, response: PooledResponse) -> None:
        status = response.status
        super().__init__(
            f"{what}: {response.peer} answers {status}",
            hint=_HINTS.get(status, "see the log of that server"),
            status=status,
            retryable=status in _BUSY,
        )
        after = response.headers.get("retry-after", "")
        self.retry_after_s = float(after) if after.isascii() and after.isdigit() else 0.0


class Patience:
    """Counts the failures of one read and sleeps between its attempts."""

    def __init__(self, clock: Clock, retries: int, closing: threading.Event) -> None:
        self._clock = clock
        self._retries = retries
        self._closing = closing
        self._failures = 0

    def failed(self, error: BackendError) -> None:
        """Return when the next attempt may start; raise ``error`` when there is none."""
        self._failures += 1
        if not error.retryable or self._failures > self._retries:
            raise error
        pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (self._failures - 1))
        pause *= random.uniform(0.5, 1.0)  # noqa: S311 - spreads clients, hides nothing
        if isinstance(error, StatusError):
            pause = max(pause, error.retry_after_s)
        if pause >= self._clock.left() or self._closing.wait(pause):
            raise error
