"""Images that are to be loaded whole become so, whatever fails meanwhile.

A prefetch of all ends with what failed left out (a registry that was away).  Guarantees: as long
as something is missing and nothing arrives, it is begun again, after pauses that grow.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from nydus_fscache.fetch.prefetch import Loadable, Prefetcher
from rafs_v6.values import dataclass

log = logging.getLogger("prefetch")

FIRST_PAUSE_S = 20.0
LAST_PAUSE_S = 600.0


@dataclass(slots=True)
class _Stall:
    """``present``: flat bytes, when something last arrived; ``since``: that moment, or the last
    attempt."""

    present: int
    since: float
    pause_s: float = FIRST_PAUSE_S


class Completion:
    """For one thread."""

    def __init__(self, prefetcher: Prefetcher) -> None:
        self._prefetcher = prefetcher
        self._stalls: dict[Loadable, _Stall] = {}

    def look(self, images: Iterable[Loadable], now: float) -> None:
        """``images``: all that are mounted; ``now``: in seconds of a clock that does not jump."""
        before, self._stalls = self._stalls, {}
        for image in images:
            if image.on_record.get("policy") != "all" or not image.is_open:
                continue
            if all(obj.complete for obj in image.objects):
                continue
            present = sum(obj.bytes_present() for obj in image.objects)
            stall = before.get(image)
            if stall is None or stall.present != present:
                stall = _Stall(present, now)
            elif now - stall.since >= stall.pause_s:
                log.info("%s is not whole: its prefetch begins again", image.name)
                self._prefetcher.resume([image])
                stall = _Stall(present, now, min(2 * stall.pause_s, LAST_PAUSE_S))
            self._stalls[image] = stall
