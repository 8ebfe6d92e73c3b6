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
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from nydus_fscache.api.nydusd.documents import error

log = logging.getLogger("nydusd")

MAX_BODY = 51200
MAX_CONNECTIONS = 256
TOO_LARGE = 413
_DRAINED = 1 << 20  # bytes of a body that is too large
_DRAIN_S = 1.0
_REQUEST_WORDS = 3
_SOCKET_MODE = 0o600
_BACKLOG = 128

Query = dict[str, str]


class Refused(Exception):
    """A request that is answered with an error; ``status``: of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


# Takes method, path, query and body (None: none); returns a document, or None for 204.
Answer = Callable[[str, str, Query, bytes | None], Any]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    raw_requestline: bytes

    def _answer(self) -> None:
        try:
            body = self._body()
            path, query = self._target()
            document = self.server.answer(self.command, path, query, body)
            self._send(204 if document is None else 200, document)
        except Refused as e:
            self._send(e.status, error(str(e)))
            if e.status == TOO_LARGE:
                self._drain()
        except Exception as e:  # a fault of ours is an answer too, or the client waits for ever
            log.exception("%s %s", self.command, self.path)
            self._send(500, error(f"internal error: {e!r}"))

    def parse_request(self) -> bool:
        if self.raw_requestline.strip():
            return super().parse_request()
        self.command = self.requestline = ""
        self.send_error(400)
        return False

    def _target(self) -> tuple[str, Query]:
        """As it was sent: ``self.path`` has lost a doubled slash."""
        words = self.requestline.split()
        if len(words) != _REQUEST_WORDS:  # HTTP/0.9, which has no head that an answer could follow
            self.close_connection = True
            raise Refused(400, "BadRequest")
        try:
            url = urlsplit(words[1])
            query = parse_qs(url.query, keep_blank_values=True)
        except ValueError as e:
            raise Refused(400, "BadRequest") from e
        if words[1].startswith("//"):
            raise Refused(404, "NoRoute")
        if not url.path.startswith("/"):
            raise Refused(400, "BadRequest")
        return url.path, {name: values[0] for name, values in query.items()}

    def _body(self) -> bytes | None:
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise Refused(400, "BadRequest")
        text = self.headers.get("Content-Length") or "0"
        if not (text.isascii() and text.isdigit()):
            self.close_connection = True
            raise Refused(400, "BadRequest")
        if len(text) > len(str(MAX_BODY)) + 1 or int(text) > MAX_BODY:
            self.close_connection = True
            raise Refused(TOO_LARGE, "BadRequest")
        data = self.rfile.read(int(text))
        if len(data) < int(text):
            self.close_connection = True
            raise Refused(400, "BadRequest")
        return data or None

    def _drain(self) -> None:
        """Of a body that was refused: a sender that finds the connection closed in the middle of
        it sees no answer."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_DRAIN_S)
            left = _DRAINED
            while left > 0 and (part := self.connection.recv(1 << 16)):
                left -= len(part)

    def _send(self, status: int, document: Any) -> None:
        head = [f"HTTP/1.1 {status} ", "Server: Nydus API"]
        head.append(f"Connection: {'close' if self.close_connection else 'keep-alive'}")
        data = b""
        if status != 204:
            data = json.dumps(document).encode()
            head += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        self.wfile.write("\r\n".join([*head, "", ""]).encode() + data)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses: too long, too many headers, not HTTP, other methods.
        Its codes for these are 400 to nydusd's callers."""
        self.close_connection = True
        self._send(400, error(message or "BadRequest"))

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = _answer  # noqa: N815

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


class _Server(socketserver.ThreadingMixIn, socketserver.BaseServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, answer: Answer) -> None:
        super().__init__(listener.getsockname(), _Handler)
        self.socket = listener
        self.answer = answer
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
            request.send(b"HTTP/1.1 503 \r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        request.close()
        return False

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
    """The API of one instance at ``path``.  A file that is there is replaced, as nydusd does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        old = os.umask(0o777 & ~_SOCKET_MODE)
        try:
            self._socket.bind(str(path))
        finally:
            os.umask(old)
        self._socket.listen(_BACKLOG)
        self._inode = path.stat().st_ino
        self._server: _Server | None = None

    def serve(self, answer: Answer) -> None:
        """In a thread of its own, until ``close``."""
        self._server = _Server(self._socket, answer)
        threading.Thread(target=self._server.serve_forever, name="nydusd-api", daemon=True).start()

    def close(self, *, leave_file: bool = False) -> None:
        """A successor's socket, which may have this path by now, stays in any case."""
        if self._server is not None:
            self._server.shutdown()
        with contextlib.suppress(OSError):
            if not leave_file and self._path.stat().st_ino == self._inode:
                self._path.unlink()
        self._socket.close()
