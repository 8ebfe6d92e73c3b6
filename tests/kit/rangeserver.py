"""A small HTTP server for ranges of files, with latency, bandwidth and faults on demand.

    python tests/kit/rangeserver.py DIR --port 8080 --latency-ms 20 --mbps 100

Serves DIR/<name> for any path that ends in <name> or sha256:<name>, so it can
stand for a registry, a bucket or a plain server.  ``mbps`` is MB/s in all, shared
by the connections; each request waits ``latency-ms`` before its answer, as a
distant server would.  Tests use ``RangeServer`` in their own process and queue
``Fault``s, which hit the next requests one each.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

_PIECE = 64 * 1024


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.  ``after``: body bytes that still arrive before it."""

    status: int = 0  # answer this, without data
    headers: dict[str, str] = field(default_factory=dict)
    reset: bool = False
    stall: bool = False
    close: bool = False
    after: int = 0
    ignore_range: bool = False
    wrong_length: int = 0  # added to Content-Length
    shift: int = 0  # added to the positions in Content-Range
    corrupt: bool = False  # the last byte of the body is flipped
    rotten: bool = False  # every thousandth byte is flipped
    chunked: bool = False


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    headers: dict[str, str]


class _Budget:
    """Bytes per second of all connections together."""

    def __init__(self, bytes_per_s: float) -> None:
        self._rate = bytes_per_s
        self._lock = threading.Lock()
        self._free_at = 0.0

    def spend(self, count: int) -> None:
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - 0.002) + count / self._rate
            wait = self._free_at - now
        if wait > 0:
            time.sleep(wait)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer
    disable_nagle_algorithm = True
    wbufsize = 16 * 1024  # the head leaves in one segment

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def do_POST(self) -> None:
        self._serve(body=True)

    do_PUT = do_PATCH = do_DELETE = do_POST

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _serve(self, body: bool) -> None:
        server = self.server
        if server.keep_seen:
            server.seen.append(Seen(self.command, self.path, dict(self.headers.items())))
        server.asked += 1
        posted = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if server.latency_s:
            time.sleep(server.latency_s)
        if server.route is not None:
            answer = server.route(self.command, self.path, dict(self.headers.items()), posted)
            if answer is not None:
                self._answer(*answer)
                return
        fault = server.next_fault() if body else Fault()
        if fault.status:
            self._answer(fault.status, fault.headers)
            return
        name = self.path.partition("?")[0].rpartition("/")[2].removeprefix("sha256:")
        path = server.directory / name
        if not path.is_file():
            self._answer(404, {})
            return
        self._send_file(path, body, fault)

    def _send_file(self, path: Path, body: bool, fault: Fault) -> None:
        size = path.stat().st_size
        off, end, status = 0, size, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted and not fault.ignore_range:
            off, end, status = int(wanted[1]), min(size, int(wanted[2] or size) + 1), 206
            if off >= size:
                self._answer(416, {"Content-Range": f"bytes */{size}"})
                return
        self.send_response(status)
        if status == 206:
            first, last = off + fault.shift, end - 1 + fault.shift
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        if fault.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(end - off + fault.wrong_length))
        self.end_headers()
        self.wfile.flush()
        if body:
            self._send_body(path, off, end, fault)

    def _send_body(self, path: Path, off: int, end: int, fault: Fault) -> None:
        breaks = fault.reset or fault.stall or fault.close
        stop = min(end, off + fault.after) if breaks else end
        changed = fault.chunked or fault.corrupt or fault.rotten
        plain = not (changed or isinstance(self.connection, ssl.SSLSocket))
        with path.open("rb") as file:
            while off < stop:
                piece = min(_PIECE, stop - off)
                self.server.budget.spend(piece)
                self.server.sent += piece
                if plain:
                    piece = os.sendfile(self.connection.fileno(), file.fileno(), off, piece)
                else:
                    data = bytearray(os.pread(file.fileno(), piece, off))
                    if fault.corrupt and off + piece == end:
                        data[-1] ^= 0xFF
                    for at in range(0, piece if fault.rotten else 0, 1000):
                        data[at] ^= 0xFF
                    frame = b"%x\r\n%b\r\n" % (piece, data) if fault.chunked else data
                    self.connection.sendall(frame)
                off += piece
        if fault.chunked:
            self.connection.sendall(b"0\r\n\r\n")
        if fault.stall:
            self.server.closing.wait(30)
        if fault.reset:
            linger = struct.pack("ii", 1, 0)  # close() then sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if breaks or fault.wrong_length:
            self.close_connection = True
            if fault.reset:
                self.connection.close()


Route = Callable[
    [str, str, dict[str, str], bytes], tuple[int, dict[str, str], bytes] | None
]  # method, path, headers, body -> answer, or None for the file


class RangeServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """One thread a connection; a context manager that serves while it is open."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128
    block_on_close = False

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        latency_ms: float = 0,
        mbps: float = 0,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        route: Route | None = None,
        keep_seen: bool = True,
    ) -> None:
        self.directory = directory
        self.latency_s = latency_ms / 1000
        self.budget = _Budget(mbps * 1e6)
        self.faults: deque[Fault] = deque()
        self.always = Fault()
        self.route = route
        self.keep_seen = keep_seen
        self.seen: list[Seen] = []
        self.asked = self.sent = 0  # requests, bytes of bodies; counted without a lock
        self.closing = threading.Event()
        self._tls = tls
        super().__init__((host, port), _Handler)

    def get_request(self) -> tuple[socket.socket, object]:
        sock, address = super().get_request()
        if self._tls is not None:  # the handshake is made by the handler's first read
            sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        return sock, address

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients come and go; what they see is what counts."""

    def next_fault(self) -> Fault:
        try:
            return self.faults.popleft()
        except IndexError:
            return self.always

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}"

    def requests(self, method: str = "GET") -> list[Seen]:
        return [seen for seen in self.seen if seen.method == method]

    def __enter__(self) -> RangeServer:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve ranges of files, slowly if asked to.")
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument("--port", type=int, default=0, help="0: any; printed at the start")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--latency-ms", type=float, default=0)
    parser.add_argument("--mbps", type=float, default=0, help="MB/s in all; 0: no limit")
    parser.add_argument("--stats", type=Path, help="at the end: a line of requests and bytes")
    args = parser.parse_args()
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with RangeServer(
        args.directory,
        port=args.port,
        host=args.host,
        latency_ms=args.latency_ms,
        mbps=args.mbps,
        keep_seen=False,
    ) as server:
        print(server.port, flush=True)
        ended.wait()
        if args.stats:
            args.stats.write_text(f"{server.asked} {server.sent}\n")


if __name__ == "__main__":
    main()
