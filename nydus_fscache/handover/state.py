"""What a successor must know, in ``state.json``: versioned, checked, read and written by
state_file.py.

It holds backend configurations with their credentials, so it is readable by
root only and never logged.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import field
from pathlib import Path
from typing import Any

from nydus_fscache.errors import CacheDirError
from nydus_fscache.handover.state_file import StateFile, read
from nydus_fscache.image.binding import Binding
from rafs_v6.values import dataclass

_FIELDS = tuple(f.name for f in dataclasses.fields(Binding))
VERSION = 2  # 1: fsid and domain stood where the address of any transport stands
LOGGED_VERSION = 3  # the same with a log, which an older version would not see


@dataclass(slots=True)
class State:
    """All that a service has to know of its predecessor, besides descriptors."""

    bindings: list[Binding] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)  # object numbers by name
    cache_limit: int = 0  # bytes; 0: none

    def save(self, path: Path) -> None:
        """Whole, as every version reads it."""
        StateFile(path).replace(map(line_of, self.bindings), self.rest(), None)

    def document(self) -> dict[str, Any]:
        """What ``parse`` takes; it shares the bindings' values."""
        return {"bindings": [_fields_of(b) for b in self.bindings], **self.rest()}

    def rest(self) -> dict[str, Any]:
        """What there is besides bindings."""
        return {
            "version": VERSION, "numbers": self.numbers, "cache_limit": self.cache_limit
        }  # fmt: skip


def line_of(binding: Binding) -> str:
    """As JSON in one line."""
    return json.dumps(_fields_of(binding))


def _fields_of(binding: Binding) -> dict[str, Any]:
    return {name: getattr(binding, name) for name in _FIELDS}


def raw(path: Path) -> dict[str, Any]:
    """As it stands, unchecked.  Raises ``OSError`` and ``ValueError``."""
    return read(path, LOGGED_VERSION)


def load(path: Path) -> State:
    """Raises ``CacheDirError`` when it is not a state of this version; a missing file is empty."""
    hint = f"move {path} away to start with nothing mounted"
    try:
        found = raw(path)
    except FileNotFoundError:
        return State()
    except (ValueError, RecursionError, OSError) as e:
        raise CacheDirError(f"{path} cannot be read: {e}", hint=hint) from e
    return parse(found, str(path), hint)


def parse(document: Any, name: str, hint: str) -> State:
    """Raises ``CacheDirError``, which calls it ``name``."""
    try:
        if document["version"] not in (1, VERSION, LOGGED_VERSION):
            raise CacheDirError(f"{name} is of version {document['version']}", hint=hint)
        old = document["version"] == 1
        bindings = [Binding(**(_of_version_1(b) if old else b)) for b in document["bindings"]]
        numbers = {str(name): int(oid) for name, oid in document["numbers"].items()}
        cache_limit = int(document.get("cache_limit", 0))
        for b in bindings:
            strings = (b.digest, b.transport, b.mountpoint, b.source, *b.address.values())
            tables = (b.backend, b.address, b.tuning, b.prefetch, b.mount)
            if not all(isinstance(s, str) for s in strings) or not all(
                isinstance(t, dict) for t in tables
            ):
                raise TypeError("a field has the wrong type")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise CacheDirError(f"{name} cannot be read: {e}", hint=hint) from e
    return State(bindings, numbers, cache_limit)


def _of_version_1(binding: dict[str, Any]) -> dict[str, Any]:
    fields = dict(binding)
    names = {name: fields.pop(name) for name in ("fsid", "domain")}
    return {**fields, "address": names if names["fsid"] else {}}
