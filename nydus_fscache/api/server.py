"""The control API's socket: HTTP with JSON on a unix socket that only root can reach.

Knows no call: who serves hands in the routes; an answer is a document, or a ``Text``.  An error is
``{"error": {"kind", "message", "hint", "exit_code"}}`` with status 400 (the request), 404 (no
such path), 500, or 503 (more than ``MAX_CONNECTIONS``); what is not HTTP gets 400 and the same
document, and its connection ends.  A request must be received completely within
``CALL_TIMEOUT_S`` after its connection was made or its predecessor answered.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import select
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from nydus_fscache.api.request import Head, NotARequest, Requests
from nydus_fscache.errors import DaemonError, FscacheError, UsageError
from nydus_fscache.files import short_path
from nydus_fscache.handover.link import Handover
from rafs_v6.values import dataclass

log = logging.getLogger("api")

MAX_BODY = 1 << 20
# a client that is slow with its request, or to take the answer
CALL_TIMEOUT_S = float(os.environ.get("NYDUS_FSCACHE_CALL_TIMEOUT_S") or 30)
MAX_CONNECTIONS = 512
METHODS = ("GET", "POST", "DELETE")
REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 500: "Internal Server Error",
    503: "Service Unavailable",
}  # fmt: skip
_BACKLOG = 1024  # who comes when it is full gets an error at once
_SOCKET_MODE = 0o600
_NEVER = float("inf")
_BUSY_PAUSE_S = 0.1
_FINISH_POLL_S = 0.005
_SENDING_S = 0.2  # a client that has connected sends its request within this time

Query = dict[str, str]
Body = dict[str, Any]
Routes = Mapping[tuple[str, str], Callable[[Query, Body], Any]]  # by method and path


@dataclass(frozen=True, slots=True)
class Text:
    """An answer that is not JSON."""

    content_type: str
    data: bytes


class _Connection:
    """Its requests, one after the other."""

    def __init__(self, server: _Server, connection: socket.socket) -> None:
        connection.settimeout(CALL_TIMEOUT_S)
        self._server = server
        self._socket = connection
        self._requests = Requests(connection)

    def serve(self) -> None:
        with (
            contextlib.suppress(ConnectionError, TimeoutError),
            contextlib.closing(self._requests),
        ):
            while self._one():
                self._server.expect_request(self._socket)

    def _one(self) -> bool:
        """Is there to be another?"""
        try:
            request = self._requests.head()
        except NotARequest as e:
            self._send(400, _error("UsageError", str(e), None, UsageError.exit_code), "close")
            return False
        if request is None:
            return False
        keeps_open = request.keeps_open and request.method in METHODS
        try:
            body = self._body(request)
        except UsageError as e:
            self._send(400, _error("UsageError", str(e), e.hint, e.exit_code), "close")
            return False
        if not self._requests.is_awaited():
            log.info("%s %s: not done, for its client is gone", request.method, request.target)
            return False
        status, document = self._answer(request, body)
        self._send(status, document, "keep-alive" if keeps_open else "close")
        return keeps_open

    def _answer(self, request: Head, body: bytes) -> tuple[int, dict[str, Any] | Text]:
        method, target = request.method, request.target
        log.debug("%s %s", method, target)
        try:
            path, query = _parsed(target)
            call = self._server.routes.get((method, path))
            if call is None:
                return 404, _error("NotFound", f"no {method} {target}", None, UsageError.exit_code)
            return 200, call(query, _document(body))
        except FscacheError as e:
            status = 400 if isinstance(e, UsageError) else 500
            return status, _error(type(e).__name__, str(e), e.hint, e.exit_code)
        except (OSError, MemoryError) as e:  # descriptors, memory or space are used up
            log.error("%s %s: %s", method, target, e)
            hint = "see the log; what the system lacks may come free: try again"
            message = f"the daemon cannot do it: {e}"
            return 500, _error("DaemonError", message, hint, DaemonError.exit_code)
        except Exception as e:  # a fault of ours is an answer too, or the client waits for ever
            log.exception("%s %s", method, target)
            return 500, _error("Internal", f"internal error: {e!r}", "see the log", 1)

    def _body(self, request: Head) -> bytes:
        """Raises ``UsageError``: what follows in the stream is not known then."""
        hint = f"Content-Length: at most {MAX_BODY}"
        try:
            length = request.length()
        except NotARequest as e:
            raise UsageError("a body of unknown length", hint=hint) from e
        if length > MAX_BODY:
            raise UsageError("the body is too large", hint=hint)
        data = self._requests.body(request, length)
        self._server.expect_nothing(self._socket)
        if len(data) < length:
            raise UsageError(f"{len(data)} bytes of a body of {length}")
        return data

    def _send(self, status: int, document: dict[str, Any] | Text, connection: str) -> None:
        if not isinstance(document, Text):
            document = Text("application/json", json.dumps(document).encode())
        self._socket.sendall(_rendered(status, document, connection))


def _parsed(target: str) -> tuple[str, Query]:
    try:
        url = urlsplit(target)
        found = parse_qs(url.query, errors="surrogateescape")  # paths are bytes
    except ValueError as e:
        raise UsageError(f"{target[:80]!r} is not a path: {e}") from e
    query = {name: os.fsdecode(os.fsencode(values[0])) for name, values in found.items()}
    return url.path, query


def _document(body: bytes) -> dict[str, Any]:
    try:
        document: dict[str, Any] = _checked(json.loads(body)) if body else {}
    except (ValueError, RecursionError) as e:
        raise UsageError(f"the body is no JSON: {e}") from e
    if not isinstance(document, dict):
        raise UsageError("the body is not an object")
    return document


def _rendered(status: int, text: Text, connection: str) -> bytes:
    head = (
        f"HTTP/1.1 {status} {REASONS[status]}", f"Content-Type: {text.content_type}",
        f"Content-Length: {len(text.data)}", f"Connection: {connection}",
    )  # fmt: skip
    return "\r\n".join((*head, "", "")).encode() + text.data


def _checked(value: Any) -> Any:
    """JSON can say what no path or name can hold.  Bytes of a path that are not UTF-8 come as
    Python has them in a string (``os.fsdecode``), whatever the client's locale is."""
    if isinstance(value, dict):
        return {_checked(k): _checked(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_checked(v) for v in value]
    if isinstance(value, str):
        try:
            if "\0" not in value:
                return os.fsdecode(os.fsencode(value))
        except UnicodeEncodeError:
            pass
        raise UsageError("the body has a string with a zero or half of a surrogate pair")
    return value


def _error(kind: str, message: str, hint: str | None, exit_code: int) -> dict[str, Any]:
    return {"error": {"kind": kind, "message": message, "hint": hint, "exit_code": exit_code}}


class _Server(socketserver.ThreadingMixIn, socketserver.BaseServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket, routes: Routes) -> None:
        super().__init__(listener.getsockname(), socketserver.BaseRequestHandler)
        self.socket = listener
        self.routes = routes
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}  # when its request has to be here

    def finish(self) -> None:
        """Return when no call is being answered, nor one is here that nobody has read yet; or
        after ``CALL_TIMEOUT_S``."""
        deadline = time.monotonic() + CALL_TIMEOUT_S
        while self._is_busy() and time.monotonic() < deadline:
            time.sleep(_FINISH_POLL_S)

    def _is_busy(self) -> bool:
        with self._lock:
            # a call is being answered, or its connection is so new that it comes in this moment
            newest = max(self._open.values(), default=0.0)
            if newest > time.monotonic() + CALL_TIMEOUT_S - _SENDING_S:
                return True
            waiting = select.poll()
            for connection in self._open:
                waiting.register(connection, select.POLLIN)
            return bool(waiting.poll(0))

    def fileno(self) -> int:
        return self.socket.fileno()

    def finish_request(self, request: Any, client_address: Any) -> None:
        _Connection(self, request).serve()

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return self.socket.accept()
        except (OSError, MemoryError) as e:
            log.error("a call is not accepted: %r", e)
            time.sleep(_BUSY_PAUSE_S)  # no descriptors: it waits in the queue, and so do we
            raise OSError(errno.ENOMEM, "not accepted") from e  # all else ends the loop

    def expect_request(self, connection: socket.socket) -> None:
        with self._lock:
            self._open[connection] = time.monotonic() + CALL_TIMEOUT_S

    def expect_nothing(self, connection: socket.socket) -> None:
        """The request is here; what it asks for has deadlines of its own."""
        with self._lock:
            self._open[connection] = _NEVER

    def verify_request(self, request: Any, client_address: Any) -> bool:
        with self._lock:
            has_room = len(self._open) < MAX_CONNECTIONS
        if has_room:
            self.expect_request(request)
        else:
            log.error("more than %d connections: one is refused", MAX_CONNECTIONS)
            request.setblocking(False)
            with contextlib.suppress(OSError):
                request.send(_TOO_MANY)
        return has_room

    def service_actions(self) -> None:
        """Between calls, twice a second: end the connections whose request does not come."""
        now = time.monotonic()
        with self._lock:
            for connection in [c for c, until in self._open.items() if until < now]:
                with contextlib.suppress(OSError):  # its thread sees the end of the stream
                    connection.shutdown(socket.SHUT_RD)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or a thread that could not be started."""
        log.info("a call ended early: %r", sys.exception())


def _too_many() -> bytes:
    error = _error("DaemonError", "too many connections", "try again", DaemonError.exit_code)
    return _rendered(503, Text("application/json", json.dumps(error).encode()), "close")


_TOO_MANY = _too_many()


def listen(path: Path, handover: Handover) -> socket.socket:
    """The listening socket: a predecessor's when there is one, so that no call is refused.  One
    that lost its name is made anew."""
    fd = handover.take("api")
    if fd is not None and path.is_socket():
        return socket.socket(fileno=fd)
    if fd is not None:
        os.close(fd)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o777 & ~_SOCKET_MODE)
    try:
        with short_path(path) as name:
            listener.bind(name)
    finally:
        os.umask(old)
    listener.listen(_BACKLOG)
    handover.keep("api", listener.fileno())
    return listener


def serve(routes: Routes, listener: socket.socket) -> Callable[[], None]:
    """Answer calls until the returned function is called, which lets those under way finish."""
    server = _Server(listener, routes)
    thread = threading.Thread(target=server.serve_forever, name="api", daemon=True)
    thread.start()

    def end() -> None:
        server.shutdown()
        server.finish()

    return end
