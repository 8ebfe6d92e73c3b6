"""SHA-256 of a few bytes without OpenSSL, whose beginning takes 3 ms and 4 MiB of a process: as
long as a MiB takes the interpreter's own, which is a sixth as fast.

Must not be used for what is not read anyway: ``hasher`` is told how much comes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

SMALL = 512 << 10  # bytes
_PIECE = 1 << 20


class Hasher(Protocol):
    def update(self, data: Any, /) -> object: ...

    def digest(self) -> bytes: ...

    def hexdigest(self) -> str: ...


def _own() -> Callable[[], Hasher] | None:
    for name in ("_sha256", "_sha2"):  # until Python 3.11, and later
        if name in sys.builtin_module_names:
            made: Callable[[], Hasher] = __import__(name).sha256
            return made
    return None


_OWN = _own()


def hasher(size: int) -> Hasher:
    """For so many bytes, about."""
    if size <= SMALL and _OWN is not None and "_hashlib" not in sys.modules:
        return _OWN()
    import hashlib  # noqa: PLC0415 - OpenSSL

    return hashlib.sha256()


def sha256(data: bytes | bytearray | memoryview) -> Hasher:
    h = hasher(len(data))
    h.update(data)
    return h


def file_sha256(path: Path) -> str:
    """Of all bytes of a file, hex; ``OSError``."""
    with path.open("rb", buffering=0) as f:
        h = hasher(path.stat().st_size)
        while piece := f.read(_PIECE):
            h.update(piece)
    return h.hexdigest()
