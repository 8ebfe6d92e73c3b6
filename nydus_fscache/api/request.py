"""Requests of HTTP/1.0 and 1.1 as they come over a connection, each part of them limited.

Knows no call and makes no answer.  Not http.server: with all that this imports (http.client,
email, ssl, html) a process takes 4 MiB more, and a node has two that serve an API.
"""

from __future__ import annotations

import select
import socket

from rafs_v6.values import dataclass

MAX_LINE, MAX_HEADERS = 65536, 100
_WORDS = 3  # of a request line
_DIGITS = 18  # of a length; more of them are too many bytes for anybody
_ENDLESS = 10**_DIGITS


class NotARequest(Exception):
    """What came cannot be answered as a request: the connection ends with this error."""


@dataclass(frozen=True, slots=True)
class Head:
    """``headers``: names in lower case, the last value of each."""

    method: str
    target: str
    headers: dict[str, str]
    keeps_open: bool

    def length(self) -> int:
        """Bytes of the body.  Raises ``NotARequest``; a body in chunks is one."""
        text = self.headers.get("content-length") or "0"
        if "transfer-encoding" in self.headers or not (text.isascii() and text.isdigit()):
            raise NotARequest("BadRequest")
        return int(text) if len(text) <= _DIGITS else _ENDLESS


class Requests:
    """Of one connection, in their order.  ``TimeoutError`` is that of its socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._file = connection.makefile("rb")

    def close(self) -> None:
        self._file.close()

    def head(self) -> Head | None:
        """None at the end of the connection.  Raises ``NotARequest``."""
        line = self._line()
        if not line:
            return None
        words = line.split()
        if len(words) != _WORDS:
            raise NotARequest("BadRequest")
        method, target, version = words
        if version not in ("HTTP/1.0", "HTTP/1.1"):
            raise NotARequest("Unsupported HTTP version")
        headers = self._headers()
        wish = headers.get("connection", "").lower()
        keeps_open = wish == "keep-alive" if version == "HTTP/1.0" else wish != "close"
        return Head(method, target, headers, keeps_open)

    def body(self, head: Head, length: int) -> bytes:
        """Fewer bytes when the connection ends before."""
        if head.headers.get("expect", "").lower() == "100-continue":
            self._socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        return self._file.read(length)

    def is_awaited(self) -> bool:
        """Is its client there?  One that gave up while nobody served must not have its mount
        ended, or made, minutes later.  A client that only sends no more is there."""
        there = select.poll()
        there.register(self._socket, 0)
        return not there.poll(0)

    def _line(self) -> str:
        line = self._file.readline(MAX_LINE + 1)
        if len(line) > MAX_LINE:
            raise NotARequest("Line too long")
        return line.decode("latin-1")

    def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        for _ in range(MAX_HEADERS):
            line = self._line()
            if line in ("\r\n", "\n"):
                return headers
            name, colon, value = line.partition(":")
            if not colon:
                raise NotARequest("BadRequest")
            headers[name.strip().lower()] = value.strip()
        raise NotARequest("Too many headers")
