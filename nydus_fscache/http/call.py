"""Calls off the data path, and their answers, whichever HTTP layer made them (``session``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import BinaryIO

from nydus_fscache.config.url import Url
from nydus_fscache.errors import BackendError
from rafs_v6.values import dataclass


@dataclass(frozen=True, slots=True)
class Upload:
    """A body that can be sent again: ``open`` gives it from its start, ``length`` in bytes."""

    open: Callable[[], BinaryIO]
    length: int


@dataclass(frozen=True, slots=True)
class Call:
    """``own_headers`` go to the origin of ``url`` only, ``headers`` wherever it redirects."""

    method: str
    url: Url
    headers: Mapping[str, str] = field(default_factory=dict)
    own_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | Upload = field(default=b"", repr=False)


class SessionAnswer:
    """An ``Answer``; to be closed.  ``url`` is where it came from, after redirects.

    ``length``: what the head says, also where no body follows it (HEAD).
    """

    report = None

    def __init__(self, url: Url, status: int, headers: Mapping[str, str]) -> None:
        self.url = url
        self.peer = url.base
        self.status = status
        self.headers = headers
        length = headers.get("content-length", "")
        self.length = int(length) if length.isascii() and length.isdigit() else None

    def readinto(self, buf: memoryview) -> int:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def read(self, limit: int) -> bytes:
        """The whole body; more than ``limit`` bytes is an error."""
        out = bytearray()
        with memoryview(bytearray(min(limit + 1, 64 * 1024))) as buf:
            while count := self.readinto(buf):
                out += buf[:count]
                if len(out) > limit:
                    raise BackendError(f"{self.peer}: answer of more than {limit} bytes")
        return bytes(out)

    def __enter__(self) -> SessionAnswer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
