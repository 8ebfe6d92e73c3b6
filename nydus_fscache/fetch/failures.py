"""Units that could not be had a moment ago: readers get the same error again, and nobody asks.

A reader in a loop must not become a flood of requests and of log lines.  The first failures of a
unit cost nothing, since most trouble is over soon and the kernel itself reads a page again; then
each pause is twice the one before.  A failure that took long is believed at once.
No locks: the cache object calls it under its own.
"""

from __future__ import annotations

from rafs_v6.values import dataclass

FREE = 6  # attempts in a row that are repeated at once
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 8.0
SLOW_S, SLOW_PAUSE_S = 5.0, 5.0
FORGOTTEN_AFTER_S = 60.0


@dataclass(slots=True)
class _Failure:
    """Believed ``until`` then, so that each read does not ask again."""

    errno: int
    attempts: int
    at: float
    until: float


class Failures:
    """By unit.  ``now``: of ``time.monotonic()``."""

    def __init__(self) -> None:
        self._failures: dict[int, _Failure] = {}

    def note(self, unit: int, errno: int, now: float, took_s: float) -> None:
        last = self._failures.get(unit)
        attempts = 1
        if last is not None and now - last.at < FORGOTTEN_AFTER_S:
            attempts = last.attempts + 1
        pause = 0.0
        if attempts > FREE:
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(attempts - FREE - 1, 10))
        if took_s >= SLOW_S:
            pause = max(pause, SLOW_PAUSE_S)
        self._failures[unit] = _Failure(errno, attempts, now, now + pause)

    def pending(self, unit: int, now: float) -> int:
        """The errno to repeat without asking; 0: ask."""
        failure = self._failures.get(unit)
        return failure.errno if failure is not None and now < failure.until else 0

    def is_doubtful(self, unit: int, now: float) -> bool:
        """Did it fail not long ago?  Then it does not come along with others."""
        failure = self._failures.get(unit)
        return failure is not None and now - failure.at < FORGOTTEN_AFTER_S

    def forget(self, unit: int) -> None:
        """It is here."""
        if self._failures:
            self._failures.pop(unit, None)
