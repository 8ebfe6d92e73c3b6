"""What a run has pushed, so that the run after a kill does not convert it again.

One line a layer: the key (source digest and all that shapes the blob), and the blob.
It is only believed as far as the store says that the blob is there.  A run that ends,
well or not, takes it away: only a kill leaves it behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path

from nydus_fscache.registry.leftovers import Leftover
from rafs_v6.values import dataclass

_NAME = "nydusify-journal.jsonl"
_LIMIT = 16 << 20


@dataclass(frozen=True, slots=True)
class Blob:
    """A layer's blob, sha256:hex and bytes."""

    digest: str
    size: int


class Journal:
    """Thread-safe."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _NAME
        self._leftover = Leftover(self.remove)
        self._lock = threading.Lock()
        self._known: dict[str, Blob] = {}
        with contextlib.suppress(OSError):
            for line in self._path.read_bytes()[:_LIMIT].splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    self._known[str(entry["key"])] = Blob(str(entry["digest"]), int(entry["size"]))

    def find(self, key: str) -> Blob | None:
        with self._lock:
            return self._known.get(key)

    def add(self, key: str, blob: Blob) -> None:
        line = json.dumps({"key": key, "digest": blob.digest, "size": blob.size})
        with self._lock:
            self._known[key] = blob
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, f"{line}\n".encode())
            finally:
                os.close(fd)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)
        self._leftover.forget()
