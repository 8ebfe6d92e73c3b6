"""A backend gives bytes of blobs by id, offset and length; it knows nothing of chunks.

Deadlines are ``time.monotonic()`` values.  A stream delivers exactly the bytes
that were asked for or raises ``BackendError``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from nydus_fscache.errors import BackendError


class RangeStream(Protocol):
    def readinto(self, buf: memoryview) -> int:
        """At least one byte; 0 only when everything asked for was delivered."""
        ...

    def close(self) -> None: ...


class Backend(ABC):
    """Thread-safe.  ``link``: backends of one name share the way to their bytes; empty: it has one
    of its own."""

    name: str
    link = ""

    @abstractmethod
    def size(self, blob_id: str, *, deadline: float) -> int:
        """Bytes of the stored blob; ``BackendError`` when it is not there."""

    @abstractmethod
    def open_range(
        self, blob_id: str, off: int, length: int, *, deadline: float, prefetch: bool
    ) -> RangeStream: ...

    @abstractmethod
    def close(self) -> None: ...

    def reauth(self, auth: str) -> bool:
        """New credentials (base64 of user:password) for all later requests; false: has none."""
        return False

    def mark_corrupt(self, blob_id: str, asked_at: float) -> bool:
        """Bytes of this blob that were asked for then (monotonic) were wrong.

        True when it helps to ask again, as they will come from elsewhere.  Only a
        verifier can notice a mirror that lies, so it tells; see ``route``.
        """
        return False

    @contextmanager
    def stream(
        self, blob_id: str, off: int, length: int, *, deadline: float, prefetch: bool = False
    ) -> Iterator[RangeStream]:
        """Bytes [off, off + length) as they come; closed at the end."""
        stream = self.open_range(blob_id, off, length, deadline=deadline, prefetch=prefetch)
        try:
            yield stream
        finally:
            stream.close()

    def read(self, blob_id: str, off: int, length: int, *, deadline: float) -> bytes:
        """The same at once, for metadata."""
        data = bytearray(length)
        with (
            memoryview(data) as view,
            self.stream(blob_id, off, length, deadline=deadline) as stream,
        ):
            have = 0
            while have < length:
                count = stream.readinto(view[have:])
                if not count:
                    raise BackendError(f"blob {blob_id}: {have} of {length} bytes came")
                have += count
        return bytes(data)


def is_safe_name(blob_id: str) -> bool:
    """May the id be part of a path or URL?  It comes from the image."""
    return bool(blob_id) and blob_id not in (".", "..") and not set(blob_id) & set("/\\\0?#%\r\n ")
