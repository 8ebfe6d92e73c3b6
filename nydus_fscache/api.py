"""The control API: HTTP with JSON on a unix socket that only root can reach.

    GET    /v1/status
    POST   /v1/mounts                 {"bootstrap", "backend", "mountpoint", "transport", "source",
                                       "prefetch", "cache_limit"}
    DELETE /v1/mounts?mountpoint=M
    POST   /v1/bindings               {"bootstrap", "backend", "transport", "fsid", "domain"}
    DELETE /v1/bindings?fsid=F&domain=D
    POST   /v1/prefetches             {"mountpoint", "paths" or "prefetch"}
    GET    /v1/prefetches
    POST   /v1/gc                     {"to": bytes, "dry_run"}
    GET    /v1/traces?digest=sha256:D
    POST   /v1/stop

An error is ``{"error": {"kind", "message", "hint", "exit_code"}}`` with status
400 (the request), 404 (no such path) or 500.
"""

from __future__ import annotations

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

from nydus_fscache.errors import FscacheError, UsageError
from nydus_fscache.handover import Handover
from nydus_fscache.service import Service

log = logging.getLogger("api")

MAX_BODY = 1 << 20
CALL_TIMEOUT_S = 30.0  # a client that stops in the middle of a request
_SOCKET_MODE = 0o600


def _route(service: Service, method: str, target: str, body: dict[str, Any]) -> Any:
    url = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    calls: dict[tuple[str, str], Callable[[], Any]] = {
        ("GET", "/v1/status"): service.status,
        ("POST", "/v1/mounts"): lambda: service.mount(body),
        ("DELETE", "/v1/mounts"): lambda: service.umount(query.get("mountpoint", "")),
        ("POST", "/v1/bindings"): lambda: service.bind(body),
        ("DELETE", "/v1/bindings"): lambda: service.unbind(
            query.get("fsid", ""), query.get("domain", "")
        ),
        ("POST", "/v1/prefetches"): lambda: service.prefetch(body),
        ("GET", "/v1/prefetches"): service.prefetches,
        ("POST", "/v1/gc"): lambda: service.gc(body),
        ("GET", "/v1/traces"): lambda: service.trace(query.get("digest", "")),
        ("POST", "/v1/stop"): service.stop,
    }
    return calls[method, url.path]()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = CALL_TIMEOUT_S
    server: _Server

    def _answer(self) -> None:
        status = 200
        try:
            document = _route(self.server.service, self.command, self.path, self._body())
        except KeyError:
            status, document = 404, _error("NotFound", f"no {self.command} {self.path}", None, 2)
        except FscacheError as e:
            status = 400 if isinstance(e, UsageError) else 500
            document = _error(type(e).__name__, str(e), e.hint, e.exit_code)
        except Exception as e:  # a fault of ours is an answer too, or the client waits for ever
            log.exception("%s %s", self.command, self.path)
            status, document = 500, _error("Internal", f"internal error: {e!r}", "see the log", 1)
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - names that http.server looks for

    def _body(self) -> dict[str, Any]:
        text = self.headers.get("Content-Length") or "0"
        if not text.isascii() or not text.isdigit() or int(text) > MAX_BODY:
            self.close_connection = True
            raise UsageError(f"a body of {text[:20]!r} bytes", hint=f"at most {MAX_BODY}")
        data = self.rfile.read(int(text))
        try:
            document = json.loads(data) if data else {}
        except (ValueError, RecursionError) as e:
            raise UsageError(f"the body is no JSON: {e}") from e
        if not isinstance(document, dict):
            raise UsageError("the body is not an object")
        return document

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def _error(kind: str, message: str, hint: str | None, exit_code: int) -> dict[str, Any]:
    return {"error": {"kind": kind, "message": message, "hint": hint, "exit_code": exit_code}}


class _Server(socketserver.ThreadingMixIn, socketserver.BaseServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket, service: Service) -> None:
        super().__init__(listener.getsockname(), _Handler)
        self.socket = listener
        self.service = service

    def fileno(self) -> int:
        return self.socket.fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        return self.socket.accept()

    def shutdown_request(self, request: Any) -> None:
        request.close()


def listen(path: Path, handover: Handover) -> socket.socket:
    """The listening socket: a predecessor's when there is one, so that no call is refused."""
    fd = handover.take("api")
    if fd is not None:
        return socket.socket(fileno=fd)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o777 & ~_SOCKET_MODE)
    try:
        listener.bind(str(path))
    finally:
        os.umask(old)
    listener.listen(64)
    handover.keep("api", listener.fileno())
    return listener


def serve(service: Service, listener: socket.socket) -> Callable[[], None]:
    """Answer calls until the returned function is called."""
    server = _Server(listener, service)
    thread = threading.Thread(target=server.serve_forever, name="api", daemon=True)
    thread.start()
    return server.shutdown
