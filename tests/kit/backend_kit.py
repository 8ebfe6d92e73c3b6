"""What the backends' tests share besides fixtures."""

from __future__ import annotations

import time
from collections.abc import Callable

from nydus_fscache.backend.base import Backend

Make = Callable[..., Backend]


def soon(seconds: float = 10.0) -> float:
    """A deadline."""
    return time.monotonic() + seconds
