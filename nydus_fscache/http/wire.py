"""HTTP/1.1 on one connection, as thin as ranged reads allow.

Bodies are received straight into the caller's buffer.  Every wait is bounded by
the deadline of the request.  What a server sends is hostile: the head is bounded,
framing that is ambiguous is an error.  Nothing here retries, and nothing here
knows redirects, credentials or blobs.
"""

from __future__ import annotations

import re
import socket
import time
from dataclasses import field

from nydus_fscache.config.url import Url
from nydus_fscache.errors import BackendError
from rafs_v6.values import dataclass

_HEAD_LIMIT = 32 * 1024
_INTERIM_LIMIT = 16  # answers of status 1xx before the one that counts
# a server that is waited for twice the time of silence and brings less than this is too slow
_TRICKLE_BYTES = 1024
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_TARGET = re.compile(r"[\x21-\x7e]+")
_CHECK = "check the backend's configuration"
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}")
_NO_BODY = frozenset((204, 304))
_WITH_BODY = frozenset(("POST", "PUT", "PATCH"))


class Deadline:
    """The waits of one request: each is bounded by ``stall_s``, all end ``at`` (monotonic)."""

    __slots__ = ("at", "stall_s")

    def __init__(self, at: float, stall_s: float) -> None:
        self.at = at
        self.stall_s = stall_s

    def left(self) -> float:
        return self.at - time.monotonic()

    def wait_s(self) -> float:
        left = self.left()
        if left <= 0:
            raise BackendError("not in time", hint="the backend is slow", retryable=True)
        return min(left, self.stall_s)


@dataclass(frozen=True, slots=True)
class Request:
    """As it is sent."""

    method: str
    url: Url
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    absolute: bool = False  # the request line names the whole URL, as a forward proxy wants it

    def encode(self) -> bytes:
        target = self.url.base + self.url.target if self.absolute else self.url.target
        lines = [f"{self.method} {target} HTTP/1.1", f"Host: {self.url.authority}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if self.body or self.method in _WITH_BODY:
            lines.append(f"Content-Length: {len(self.body)}")
        if not _TARGET.fullmatch(target):
            raise BackendError("a URL with blanks or letters that are not ASCII", hint=_CHECK)
        for line in lines:
            if "\r" in line or "\n" in line or not line.isascii():
                raise BackendError("a header that HTTP cannot carry", hint=_CHECK)
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + self.body


class Connection:
    """Owns a connected socket; one exchange at a time."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self._sock = sock
        self.peer = peer  # for messages
        self._buffer = bytearray(_HEAD_LIMIT)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._armed_s = 0.0
        self._began = self._waited = 0.0  # of this exchange: when; for its bytes since ...
        self._received = self._received_before = 0  # ... there were so many
        self.idle_since = 0.0
        self.timed_out = False

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def _broken(self, what: str) -> BackendError:
        return BackendError(f"{self.peer}: {what}", retryable=True)

    def _arm(self, deadline: Deadline) -> None:
        self._armed_s = deadline.wait_s()
        self._sock.settimeout(self._armed_s)

    def exchange(self, request: Request, deadline: Deadline) -> Response:
        """Send, and receive the head of the answer."""
        self._began, self._waited = time.monotonic(), 0.0
        self._received = self._received_before = 0
        try:
            self._arm(deadline)
            self._sock.sendall(request.encode())
        except TimeoutError as e:
            self.timed_out = True
            raise self._broken("took no request in time") from e
        except OSError as e:
            raise self._broken(f"connection broke: {e.strerror or e}") from e
        for _ in range(_INTERIM_LIMIT):
            status, headers, minor = self._head(deadline)
            if status >= 200:
                tokens = headers.get("connection", "").lower()
                keep = "close" not in tokens and (minor == 1 or "keep-alive" in tokens)
                head = request.method == "HEAD"
                return Response(self, deadline, status, headers, keep=keep, bodyless=head)
        raise self._broken("sends interim answers only")

    def recv_into(self, buf: memoryview, deadline: Deadline) -> int:
        """At least one byte, or ``BackendError``; 0 at the end of the connection."""
        began = time.monotonic()
        left = deadline.at - began
        if left <= 0:
            raise self._too_slow()
        if left < self._armed_s:  # the time-out of the socket is only changed when it must be
            self._arm(deadline)
        try:
            count = self._sock.recv_into(buf)
        except TimeoutError as e:
            self.timed_out = True
            if self._armed_s < deadline.stall_s:
                raise self._too_slow() from e
            raise self._broken(f"sent nothing for {self._armed_s:.1f} s") from e
        except OSError as e:
            raise self._broken(f"connection broke: {e.strerror or e}") from e
        self._received += count
        self._waited += time.monotonic() - began
        if self._waited > 2 * deadline.stall_s:
            self._check_pace()
        return count

    def _check_pace(self) -> None:
        """A server that sends a byte a second is never silent, and never done."""
        if self._received - self._received_before < _TRICKLE_BYTES:
            self.timed_out = True
            raise self._too_slow()
        self._waited, self._received_before = 0.0, self._received

    def _too_slow(self) -> BackendError:
        took = time.monotonic() - self._began
        return self._broken(f"too slow: {self._received} bytes in {took:.0f} s")

    def take(self, buf: memoryview, deadline: Deadline) -> int:
        """Body bytes: what came with the head first, then straight from the socket."""
        ready = self._end - self._start
        if not ready:
            return self.recv_into(buf, deadline)
        count = min(ready, len(buf))
        buf[:count] = self._view[self._start : self._start + count]
        self._start += count
        return count

    def skip(self, count: int) -> bool:
        """Body bytes that came with the head; False, and nothing skipped, when not all did."""
        if self._end - self._start < count:
            return False
        self._start += count
        return True

    @property
    def has_leftovers(self) -> bool:
        """Bytes have come that nobody asked for: the next answer would begin with them."""
        return self._start != self._end

    def take_until(self, mark: bytes, deadline: Deadline) -> bytes:
        """Everything before ``mark``, which is consumed."""
        while (at := self._buffer.find(mark, self._start, self._end)) < 0:
            if self._start:
                rest = bytes(self._view[self._start : self._end])
                self._view[: len(rest)] = rest
                self._start, self._end = 0, len(rest)
            if self._end == _HEAD_LIMIT:
                raise BackendError(f"{self.peer}: answer head of more than {_HEAD_LIMIT} bytes")
            count = self.recv_into(self._view[self._end :], deadline)
            if not count:
                raise self._broken("closed the connection before it answered")
            self._end += count
        found = bytes(self._view[self._start : at])
        self._start = at + len(mark)
        if self._start == self._end:
            self._start = self._end = 0
        return found

    def _head(self, deadline: Deadline) -> tuple[int, dict[str, str], int]:
        lines = self.take_until(b"\r\n\r\n", deadline).decode("latin-1").split("\r\n")
        version, _, rest = lines[0].partition(" ")
        code = rest[:3]
        if version not in ("HTTP/1.1", "HTTP/1.0") or not (code.isascii() and code.isdigit()):
            raise BackendError(
                f"{self.peer} does not speak HTTP/1", hint="is the scheme (http, https) right?"
            )
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            # neither folded lines nor bare line breaks: proxies disagree about what they mean
            if not (colon and _NAME.fullmatch(name)) or "\r" in value or "\n" in value:
                raise BackendError(f"{self.peer}: malformed header")
            name, value = name.lower(), value.strip()
            if name == "content-length" and headers.get(name, value) != value:
                raise BackendError(f"{self.peer}: two values of Content-Length")
            # a repeated header is a list, except the length, which may only repeat itself
            repeated = name in headers and name != "content-length"
            headers[name] = f"{headers[name]}, {value}" if repeated else value
        return int(code), headers, int(version[-1])


class Response:
    """Status, headers (lower case names), and the body as it comes."""

    def __init__(
        self,
        connection: Connection,
        deadline: Deadline,
        status: int,
        headers: dict[str, str],
        *,
        keep: bool,
        bodyless: bool,
    ) -> None:
        self._connection = connection
        self._deadline = deadline
        self.status = status
        self.headers = headers
        self.peer = connection.peer
        self._keep = keep
        self._chunked = False
        self._first_chunk = True
        self.length: int | None = None  # of the body; None: unknown until its end
        self._left = 0  # of the body, or of the chunk that is being received
        self._done = False
        if bodyless or status in _NO_BODY:
            self._done = True
        elif "transfer-encoding" in headers:
            if "content-length" in headers:
                raise BackendError(f"{self.peer}: an answer of two lengths")
            if headers["transfer-encoding"].lower() != "chunked":
                raise BackendError(f"{self.peer}: unknown transfer encoding")
            self._chunked = True
        elif "content-length" in headers:
            self.length = self._left = self.declared_length()
            self._done = not self.length
        else:
            self._keep = False  # the body ends with the connection

    def declared_length(self) -> int:
        """``Content-Length``, also of the answer to HEAD, which has no body."""
        text = self.headers.get("content-length", "")
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise BackendError(f"{self.peer}: no valid Content-Length", status=self.status)
        return int(text)

    def readinto(self, buf: memoryview) -> int:
        """At least one byte; 0 at the end of the body."""
        if self._done:
            return 0
        if self._chunked and not self._left and not self._next_chunk():
            return 0
        if self._chunked or self.length is not None:
            buf = buf[: self._left]
        count = self._connection.take(buf, self._deadline)
        if not count:
            if self.length is None and not self._chunked:
                self._done = True
                return 0
            raise BackendError(f"{self.peer}: connection ended in the middle", retryable=True)
        if self._chunked or self.length is not None:
            self._left -= count
            self._done = not self._left and not self._chunked
        return count

    def _next_chunk(self) -> bool:
        if not self._first_chunk and self._connection.take_until(b"\r\n", self._deadline):
            raise BackendError(f"{self.peer}: malformed chunk of an answer")
        self._first_chunk = False
        size = self._connection.take_until(b"\r\n", self._deadline).partition(b";")[0].strip()
        if not _CHUNK_SIZE.fullmatch(size):
            raise BackendError(f"{self.peer}: malformed chunk of an answer")
        self._left = int(size, 16)
        if not self._left:
            trailers = 0
            while line := self._connection.take_until(b"\r\n", self._deadline):
                trailers += len(line)
                if trailers > _HEAD_LIMIT:
                    raise BackendError(f"{self.peer}: endless trailers")
            self._done = True
        return not self._done

    def read(self, limit: int) -> bytes:
        """The whole body, for small documents; more than ``limit`` bytes is an error."""
        out = bytearray()
        buf = memoryview(bytearray(min(limit + 1, 64 * 1024)))
        while count := self.readinto(buf):
            out += buf[:count]
            if len(out) > limit:
                raise BackendError(f"{self.peer}: answer of more than {limit} bytes")
        return bytes(out)

    def give_back(self) -> Connection | None:
        """The connection, when it can serve another request; it is closed otherwise."""
        connection = self._connection
        if self.length is not None and not self._done:
            self._done = connection.skip(self._left)  # of an error: it came with the head
        if self._done and self._keep and not connection.has_leftovers:
            return connection
        connection.close()
        return None
