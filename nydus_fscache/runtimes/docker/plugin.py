"""Docker's plugin protocol: HTTP POST with JSON over a unix socket (docker, plugin_api.md).

Docker finds the socket by its name in /run/docker/plugins, and waits while nobody listens.
"""

from __future__ import annotations

import http.server
import io
import json
import logging
import os
import socket
import socketserver
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from nydus_fscache.errors import FscacheError, UsageError
from nydus_fscache.files import remove_socket
from nydus_fscache.runtimes.docker.driver import Layers

log = logging.getLogger("docker")

_TYPE = "application/vnd.docker.plugins.v1+json"
_DOCUMENT_LIMIT = 1 << 20
_PIECE = 1 << 16
_LINE = 1 << 10

Document = dict[str, Any]
Call = Callable[[Document], Document]


def calls(layers: Layers) -> dict[str, Call]:
    """By name, without those that move a tar."""

    def init(body: Document) -> Document:
        layers.open(Path(body["Home"]))
        return {}

    def create(body: Document) -> Document:
        layers.create(body["ID"], body.get("Parent") or "")
        return {}

    def remove(body: Document) -> Document:
        layers.remove(body["ID"])
        return {}

    def put(body: Document) -> Document:
        layers.put(body["ID"])
        return {}

    def cleanup(_: Document) -> Document:
        layers.clean_up()
        return {}

    return {
        "Init": init,
        "Capabilities": lambda _: {"ReproducesExactDiffs": False},
        "Status": lambda _: {"Status": layers.status()},
        "GetMetadata": lambda _: {"Metadata": {}},
        "Cleanup": cleanup,
        "Create": create,
        "CreateReadWrite": create,
        "Remove": remove,
        "Get": lambda body: {"Dir": str(layers.get(body["ID"]))},
        "Put": put,
        "Exists": lambda body: {"Exists": layers.exists(body["ID"])},
        "Changes": lambda body: {"Changes": layers.changes(body["ID"])},
        "DiffSize": lambda body: {"Size": layers.size(body["ID"])},
    }


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    layers: Layers
    calls: dict[str, Call]

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        group, _, name = url.path.lstrip("/").partition(".")
        try:
            if url.path == "/Plugin.Activate":
                self._read_document()
                self._answer({"Implements": ["GraphDriver"]})
            elif group != "GraphDriver":
                raise UsageError(f"no call {url.path}")
            elif name == "ApplyDiff":
                query = parse_qs(url.query)
                # a process of its own reads the rest of this connection
                self.close_connection = True
                body = _Body(self.rfile, self.headers)
                self._answer({"Size": self.layers.apply(query["id"][0], body)})
            elif name == "Diff":
                self._diff(self._read_document()["ID"])
            else:
                call = self.calls.get(name)
                if call is None:
                    raise UsageError(f"no call {url.path}")
                self._answer(call(self._read_document()))
        except (FscacheError, OSError, KeyError, ValueError) as e:
            text = f"missing {e}" if isinstance(e, KeyError) else str(e)
            log.error("%s: %s", url.path, text)
            self.close_connection = True  # some of the body may be unread
            self._answer({"Err": text}, 500)

    def _read_document(self) -> Document:
        data = _Body(self.rfile, self.headers).read(_DOCUMENT_LIMIT)
        document = json.loads(data or b"{}")
        if not isinstance(document, dict):
            raise UsageError("the body is not a JSON object")
        return document

    def _answer(self, document: Document, status: int = 200) -> None:
        data = json.dumps({"Err": "", **document}).encode()
        self.send_response(status)
        self.send_header("Content-Type", _TYPE)
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def _diff(self, name: str) -> None:
        """Made whole first: an error in the middle would look like the tar's end."""
        with tempfile.TemporaryFile(dir=self.layers.home) as file:
            self.layers.diff(name, file)
            length = file.tell()
            file.seek(0)
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(length))
            self.end_headers()
            while data := file.read(_PIECE):
                self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


class _Body:
    """A request's body, chunked or of a known length.  ``ValueError`` when it is cut."""

    def __init__(self, source: io.BufferedIOBase, headers: Any) -> None:
        self._source = source
        self._chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
        self._left = 0 if self._chunked else int(headers.get("Content-Length") or 0)
        self._ended = not self._chunked and not self._left

    def read(self, size: int = -1, /) -> bytes:
        out = bytearray()
        while not self._ended and (size < 0 or len(out) < size):
            if self._chunked and not self._left:
                self._begin_chunk()
                continue
            want = self._left if size < 0 else min(self._left, size - len(out))
            data = self._source.read(min(want, _PIECE))
            if not data:
                raise ValueError("the request was cut")
            out += data
            self._left -= len(data)
            if not self._left:
                if self._chunked:
                    self._source.readline(_LINE)
                else:
                    self._ended = True
        return bytes(out)

    def _begin_chunk(self) -> None:
        self._left = int(self._source.readline(_LINE).split(b";")[0], 16)
        if not self._left:
            while self._source.readline(_LINE).strip():  # trailers
                pass
            self._ended = True


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


def listen(at: Path, layers: Layers) -> Server:
    """For root alone: whoever may call it is root.  Takes the place of a server that has died."""
    at.parent.mkdir(0o755, parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(at))
        except OSError:
            remove_socket(at)
        else:
            raise UsageError(f"another plugin listens at {at}", hint="one is enough")
    handler = type("Bound", (Handler,), {"layers": layers, "calls": calls(layers)})
    old = os.umask(0o177)
    try:
        return Server(str(at), handler)
    finally:
        os.umask(old)
