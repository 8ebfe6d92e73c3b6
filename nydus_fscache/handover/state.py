"""What a successor must know, in ``state.json``: versioned, checked, replaced atomically.

It holds backend configurations with their credentials, so it is readable by
root only and never logged.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nydus_fscache.errors import CacheDirError
from nydus_fscache.files import replace_file

VERSION = 1


@dataclass(slots=True)
class Binding:
    """An image that is served, and where it is mounted ("" when the user mounts it)."""

    digest: str  # sha256 of the bootstrap
    backend: dict[str, Any]
    transport: str
    fsid: str
    domain: str
    mountpoint: str
    source: str  # what the user named: a path or an image reference
    tuning: dict[str, Any] = field(default_factory=dict)  # see cache.plan.Tuning
    # of the last prefetch, which a successor goes on with: its number, policy and paths
    prefetch: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class State:
    bindings: list[Binding] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)  # object numbers by name
    cache_limit: int = 0  # bytes; 0: none

    def save(self, path: Path) -> None:
        replace_file(path, json.dumps(self.document(), indent=1).encode())

    def document(self) -> dict[str, Any]:
        """What ``parse`` takes."""
        return {"version": VERSION, **dataclasses.asdict(self)}


def load(path: Path) -> State:
    """Raises ``CacheDirError`` when it is not a state of this version; a missing file is empty."""
    hint = f"move {path} away to start with nothing mounted"
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        return State()
    except (ValueError, RecursionError, OSError) as e:
        raise CacheDirError(f"{path} cannot be read: {e}", hint=hint) from e
    return parse(document, str(path), hint)


def parse(document: Any, name: str, hint: str) -> State:
    """Raises ``CacheDirError``, which calls it ``name``."""
    try:
        if document["version"] != VERSION:
            raise CacheDirError(f"{name} is of version {document['version']}", hint=hint)
        bindings = [Binding(**b) for b in document["bindings"]]
        numbers = {str(name): int(oid) for name, oid in document["numbers"].items()}
        cache_limit = int(document.get("cache_limit", 0))
        for b in bindings:
            strings = (b.digest, b.transport, b.fsid, b.domain, b.mountpoint, b.source)
            tables = (b.backend, b.tuning, b.prefetch)
            if not all(isinstance(s, str) for s in strings) or not all(
                isinstance(t, dict) for t in tables
            ):
                raise TypeError("a field has the wrong type")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise CacheDirError(f"{name} cannot be read: {e}", hint=hint) from e
    return State(bindings, numbers, cache_limit)
