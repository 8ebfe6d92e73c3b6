"""HTTP on a unix socket, with nydusd's manners (docs/nydusd.md, "API").

Idle connections stay open for ever: the snapshotter keeps one, and takes its end for the
daemon's death.  Connections are served beside each other.  An error is
``{"code", "message"}``, whatever failed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import socketserver
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from nydus_fscache.api.nydusd.documents import error
from nydus_fscache.api.request import Head, NotARequest, Requests
from nydus_fscache.files import remove_socket

log = logging.getLogger("nydusd")

MAX_BODY = 51200
MAX_CONNECTIONS = 256
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
NO_CONTENT, TOO_LARGE = 204, 413
_DRAINED = 1 << 20  # bytes of a body that is too large
_DRAIN_S = 1.0
_SOCKET_MODE = 0o600
_BACKLOG = 128
_NEVER_S = 86400.0  # between two looks for nothing: 200 fronts on a node are to wake nobody

Query = dict[str, str]


class Refused(Exception):
    """A request that is answered with an error; ``status``: of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


# Takes method, path, query and body (None: none); returns a document, or None for 204.
Answer = Callable[[str, str, Query, bytes | None], Any]


class _Connection:
    """Its requests, one after the other."""

    def __init__(self, connection: socket.socket, answer: Answer) -> None:
        self._socket = connection
        self._requests = Requests(connection)
        self._call = answer

    def serve(self) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(self._requests):
            while self._one():
                pass

    def _one(self) -> bool:
        """Is there to be another?"""
        try:
            request = self._requests.head()
            if request is None:
                return False
            if request.method not in METHODS:
                raise NotARequest("Unsupported method")
            body = self._body(request)
        except NotARequest as e:
            self._send(400, error(str(e)), keep_open=False)
            return False
        except Refused as e:
            self._send(e.status, error(str(e)), keep_open=False)
            self._drain()
            return False
        if not self._requests.is_awaited():
            log.info("%s %s: not done, for its client is gone", request.method, request.target)
            return False
        status, document = self._answer(request, body)
        self._send(status, document, keep_open=request.keeps_open)
        return request.keeps_open

    def _answer(self, request: Head, body: bytes | None) -> tuple[int, Any]:
        try:
            path, query = _parsed(request.target)
            document = self._call(request.method, path, query, body)
        except Refused as e:
            return e.status, error(str(e))
        except Exception as e:  # a fault of ours is an answer too, or the client waits for ever
            log.exception("%s %s", request.method, request.target)
            return 500, error(f"internal error: {e!r}")
        return (NO_CONTENT if document is None else 200), document

    def _body(self, request: Head) -> bytes | None:
        """Raises ``Refused`` when it is too large."""
        length = request.length()
        if length > MAX_BODY:
            raise Refused(TOO_LARGE, "BadRequest")
        data = self._requests.body(request, length)
        if len(data) < length:
            raise NotARequest("BadRequest")
        return data or None

    def _drain(self) -> None:
        """Of a body that was refused: a sender that finds the connection closed in the middle of
        it sees no answer."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            self._socket.settimeout(_DRAIN_S)
            left = _DRAINED
            while left > 0 and (part := self._socket.recv(1 << 16)):
                left -= len(part)

    def _send(self, status: int, document: Any, *, keep_open: bool) -> None:
        self._socket.sendall(_rendered(status, document, keep_open=keep_open))


def _parsed(target: str) -> tuple[str, Query]:
    if target.startswith("//"):
        raise Refused(404, "NoRoute")
    try:
        url = urlsplit(target)
        query = parse_qs(url.query, keep_blank_values=True)
    except ValueError as e:
        raise Refused(400, "BadRequest") from e
    if not url.path.startswith("/"):
        raise Refused(400, "BadRequest")
    return url.path, {name: values[0] for name, values in query.items()}


def _rendered(status: int, document: Any, *, keep_open: bool) -> bytes:
    head = [f"HTTP/1.1 {status} ", "Server: Nydus API"]
    head.append(f"Connection: {'keep-alive' if keep_open else 'close'}")
    data = b""
    if status != NO_CONTENT:
        data = json.dumps(document).encode()
        head += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join([*head, "", ""]).encode() + data


class _Server(socketserver.ThreadingMixIn, socketserver.BaseServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, answer: Answer) -> None:
        super().__init__(listener.getsockname(), socketserver.BaseRequestHandler)
        self.socket = listener
        self._answer = answer
        self._open = threading.Semaphore(MAX_CONNECTIONS)

    def fileno(self) -> int:
        return self.socket.fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        return self.socket.accept()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        if self._open.acquire(blocking=False):
            return True
        request.setblocking(False)
        with contextlib.suppress(OSError):
            request.send(_rendered(503, error("too many connections"), keep_open=False))
        request.close()
        return False

    def finish_request(self, request: Any, client_address: Any) -> None:
        _Connection(request, self._answer).serve()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._open.release()

    def shutdown_request(self, request: Any) -> None:
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_WR)
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.info("a call ended early", exc_info=True)


class Listener:
    """The API of one instance at ``path``, in the place of a socket that is there.

    Raises ``UsageError`` for anything else that is there, ``OSError``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        remove_socket(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        old = os.umask(0o777 & ~_SOCKET_MODE)
        try:
            self._socket.bind(str(path))
        except BaseException:
            self._socket.close()
            raise
        finally:
            os.umask(old)
        self._socket.listen(_BACKLOG)
        self._inode = path.stat().st_ino
        self._server: _Server | None = None

    def serve(self, answer: Answer) -> None:
        """In a thread of its own, until ``close``."""
        self._server = _Server(self._socket, answer)
        threading.Thread(
            target=self._server.serve_forever, args=(_NEVER_S,), name="nydusd-api", daemon=True
        ).start()

    def close(self, *, leave_file: bool = False) -> None:
        """A successor's socket, which may have this path by now, stays in any case."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the server's thread
        if self._server is not None:
            self._server.shutdown()
        with contextlib.suppress(OSError):
            if not leave_file and self._path.stat().st_ino == self._inode:
                self._path.unlink()
        self._socket.close()
