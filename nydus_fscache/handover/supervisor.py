"""The daemon's state at nydus-snapshotter's supervisor, which outlives every process of ours.

The bytes of a transfer (transfer.py) are ours to choose; of the descriptors the supervisor keeps
the first alone, /dev/cachefiles, so that one comes first, and the document names them in their
order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from nydus_fscache.errors import DaemonError, FscacheError
from nydus_fscache.handover import state, transfer
from nydus_fscache.handover.state import State
from nydus_fscache.handover.transfer import MAX_DESCRIPTORS

VERSION = 1
FIRST = "cachefiles"


def send(path: Path, what: State, descriptors: Mapping[str, int]) -> None:
    """Hand ``what`` and the descriptors to the supervisor that listens at ``path``.

    Raises ``DaemonError``.
    """
    names = sorted(descriptors, key=lambda name: name != FIRST)[:MAX_DESCRIPTORS]
    document = {"version": VERSION, "descriptors": names, "state": what.document()}
    transfer.send(path, json.dumps(document).encode(), [descriptors[name] for name in names])


def receive(path: Path) -> tuple[State, dict[str, int]]:
    """What was handed to the supervisor, and the descriptors by name; at least one.

    Raises ``DaemonError``, and ``CacheDirError`` when the state is not of our version.
    Nothing stays open then.
    """
    data, received = transfer.receive(path)
    try:
        found, names = _parse(data, path)
        if not received:
            raise DaemonError(f"supervisor {path} has no descriptor", hint=transfer.HINT)
    except FscacheError:
        transfer.close_all(received)
        raise
    transfer.close_all(received[len(names) :])
    return found, dict(zip(names, received, strict=False))


def _parse(data: bytes, path: Path) -> tuple[State, list[str]]:
    try:
        document = json.loads(data)
        if document["version"] != VERSION:
            version = document["version"]
            raise DaemonError(f"supervisor {path} has version {version}", hint=transfer.HINT)
        names = document["descriptors"]
        if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
            raise TypeError("the descriptors have no names")
        if len(set(names)) != len(names):
            raise ValueError("two descriptors have one name")
        return state.parse(document["state"], f"supervisor {path}", transfer.HINT), names
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise DaemonError(f"supervisor {path} has no state of ours: {e}", hint=transfer.HINT) from e
