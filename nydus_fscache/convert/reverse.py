"""From Nydus back to OCI."""
from __future__ import annotations

from typing import Any

from nydus_fscache.errors import UsageError


class Reversal:
    def __init__(self, *a: Any, **k: Any) -> None:
        raise UsageError("--reverse is not supported yet")
    def run(self) -> None: ...
