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
from nydus_fscache.image.binding import Binding

_FIELDS = tuple(f.name for f in dataclasses.fields(Binding))
VERSION = 2  # 1: fsid and domain stood where the address of any transport stands


@dataclass(slots=True)
class State:
    """All that a service has to know of its predecessor, besides descriptors."""

    bindings: list[Binding] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)  # object numbers by name
    cache_limit: int = 0  # bytes; 0: none

    def save(self, path: Path) -> None:
        """One line a binding: written twice for each mount, whatever number of others there is."""
        document = self.document()
        bindings = ",\n".join(json.dumps(b) for b in document.pop("bindings"))
        rest = json.dumps(document)[1:]
        replace_file(path, f'{{"bindings": [\n{bindings}\n],\n{rest}\n'.encode())

    def document(self) -> dict[str, Any]:
        """What ``parse`` takes; it shares the bindings' values."""
        bindings = [{name: getattr(b, name) for name in _FIELDS} for b in self.bindings]
        numbers, limit = self.numbers, self.cache_limit
        return {
            "version": VERSION, "bindings": bindings, "numbers": numbers, "cache_limit": limit,
        }  # fmt: skip


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
        if document["version"] not in (1, VERSION):
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
