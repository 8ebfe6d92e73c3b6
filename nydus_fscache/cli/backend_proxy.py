"""``nydus-backend-proxy``: a directory of blobs, served as an OCI registry would serve them.

For tests and for nodes that share blobs: point the ``registry`` backend (scheme http) at it.
Serves reads of ``/v2/…/blobs/sha256:HEX`` alone; there is no way to write or to list.
"""

from __future__ import annotations

import argparse
import os
import re
import socketserver
import stat
import sys
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import nydus_fscache
from nydus_fscache.cli.frame import guarded
from nydus_fscache.errors import UsageError

PROG = "nydus-backend-proxy"
_BLOB = re.compile(r"/v2/(?:[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)/blobs/(sha256:([0-9a-f]{64}))")
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")
_PIECE = 1 << 20
_IDLE_S = 120.0
_EXAMPLES = """\
examples:
  nydus-backend-proxy --blobsdir /var/lib/blobs
  nydus-backend-proxy -b blobs --address 0.0.0.0 --port 5000
"""


def main(argv: Sequence[str] | None = None) -> int:
    return guarded(PROG, _run, argv)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=PROG,
        description="Serve a directory of blobs, named by their sha256, as a registry's blobs.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "-b", "--blobsdir", metavar="DIR", type=Path, required=True, help="blobs, named HEX"
    )
    made.add_argument(
        "--address",
        default=os.environ.get("ROCKET_ADDRESS", "127.0.0.1"),
        help="to listen at (default: $ROCKET_ADDRESS, else 127.0.0.1)",
    )
    made.add_argument(
        "--port",
        default=os.environ.get("ROCKET_PORT", "8000"),
        help="default: $ROCKET_PORT, else 8000; 0: any that is free",
    )
    made.add_argument("-V", "--version", action="version",
                      version=f"{PROG} {nydus_fscache.__version__}")  # fmt: skip
    return made


def _run(words: list[str]) -> int:
    args = parser().parse_args(words)
    if not args.blobsdir.is_dir():
        raise UsageError(f"{args.blobsdir} is not a directory", hint="see --blobsdir in --help")
    if not (str(args.port).isascii() and str(args.port).isdigit() and int(args.port) < 1 << 16):
        raise UsageError(f"port {args.port!r}", hint="0 to 65535")
    with BlobServer(args.blobsdir, args.address, int(args.port)) as server:
        print(f"serving {args.blobsdir} at http://{args.address}:{server.port}", flush=True)
        server.serve_forever()
    return 0


class BlobServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """One thread a connection."""

    daemon_threads = True
    allow_reuse_address = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, directory: Path, address: str = "127.0.0.1", port: int = 0) -> None:
        self.directory = directory
        super().__init__((address, port), _Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients come and go."""

    def run_in_background(self) -> None:
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = f"{PROG}/{nydus_fscache.__version__}"
    sys_version = ""
    timeout = _IDLE_S
    disable_nagle_algorithm = True
    wbufsize = 16 * 1024  # the head leaves in one segment
    server: BlobServer

    def log_message(self, *args: object) -> None:
        """Quiet, as a proxy before a registry is."""

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def _serve(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path in ("/v2", "/v2/"):  # "do you speak version 2?"
            self._head(200, 0, {})
            return
        match = _BLOB.fullmatch(path)
        fd = self._open(match[2]) if match else -1
        if match is None or fd < 0:
            self._head(404, 0, {})
            return
        try:
            self._send(fd, match[1], body=body)
        finally:
            os.close(fd)

    def _open(self, name: str) -> int:
        """-1 unless it is a regular file; a fifo must not make us wait."""
        try:
            fd = os.open(self.server.directory / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return -1
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        return -1

    def _send(self, fd: int, digest: str, *, body: bool) -> None:
        size = os.fstat(fd).st_size
        headers = {"Docker-Content-Digest": digest, "Accept-Ranges": "bytes"}
        off, end, status = 0, size, 200
        wanted = self.headers.get("Range")
        if wanted is not None:
            found = _positions(wanted, size)
            if found is None:
                self._head(416, 0, {**headers, "Content-Range": f"bytes */{size}"})
                return
            off, end, status = *found, 206
            headers["Content-Range"] = f"bytes {off}-{end - 1}/{size}"
        self._head(status, end - off, headers)
        while body and off < end:
            count = os.sendfile(self.connection.fileno(), fd, off, min(_PIECE, end - off))
            if not count:  # it was cut meanwhile: the length that was promised cannot be kept
                self.close_connection = True
                return
            off += count

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()


def _positions(text: str, size: int) -> tuple[int, int] | None:
    """Offset and end of one range; None when it cannot be had."""
    match = _RANGE.fullmatch(text.strip())
    if not match or not (match[1] or match[2]):
        return None
    if not match[1]:  # the last so many bytes
        count = min(int(match[2]), size)
        return (size - count, size) if count else None
    off = int(match[1])
    end = min(int(match[2]) + 1, size) if match[2] else size
    return (off, end) if off < end else None


if __name__ == "__main__":
    sys.exit(main())
