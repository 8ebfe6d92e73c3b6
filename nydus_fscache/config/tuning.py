"""How fetching behaves where a configuration says so; the rest is found out by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nydus_fscache.errors import UsageError
from rafs_v6.values import dataclass

MAX_SIZE = 0x10000000  # bytes, nydusd's own limit
_MAX_THREADS = 1024


@dataclass(frozen=True, slots=True)
class Tuning:
    """None: found out while the daemon runs.

    ``amplify``: flat bytes that a miss brings at least, with what follows.  Of prefetch:
    ``prefetch`` (the policy that "auto" stands for, "": ours), ``threads`` (requests at once),
    ``merging`` (stored bytes of a request), ``bandwidth`` (stored bytes/s, 0: no limit; demand
    takes its share of it and does not wait).
    """

    amplify: int | None = None
    prefetch: str = ""
    threads: int | None = None
    merging: int | None = None
    bandwidth: int = 0


def tuning_of(values: Mapping[str, Any], where: object) -> Tuning:
    """From its members; None where one is not given.  Raises ``UsageError``."""
    limits = {"amplify": MAX_SIZE, "threads": _MAX_THREADS, "merging": MAX_SIZE}
    known = {*limits, "bandwidth", "prefetch"}
    if not set(values) <= known:
        raise UsageError(f"{where}: no {', '.join(sorted(set(values) - known))}", hint=f"{known}")
    for name, value in values.items():
        if value is None or name == "prefetch":
            continue
        least, most = int(name == "threads"), limits.get(name, 1 << 63)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise UsageError(f"{where}: {name} is {value!r}", hint=f"a number, {least} to {most}")
    if values.get("prefetch") not in (None, "", "none", "table", "all"):
        raise UsageError(f"{where}: prefetch is {values['prefetch']!r}", hint="none, table or all")
    return Tuning(**{name: value for name, value in values.items() if value is not None})
