"""A supervisor of nydusd's, as nydus-snapshotter has one."""

from __future__ import annotations

import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from real_daemon import Answer, Daemon

_CALLS = "/api/v1/daemon/fuse"


class Keeping:
    """A supervisor: keeps the bytes and descriptors of one transfer, and gives them back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data, self._fds = b"", list[int]()

    def _listen(self) -> socket.socket:
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen(1)
        listener.settimeout(30)
        return listener

    def take(self, daemon: Daemon) -> Answer:
        with self._listen() as listener, ThreadPoolExecutor(1) as pool:
            asked = pool.submit(daemon.ask, "PUT", f"{_CALLS}/sendfd")
            connection, _ = listener.accept()
            with connection:
                self._data, self._fds, _, _ = socket.recv_fds(connection, 1 << 16, 16)
                while part := connection.recv(1 << 16):
                    self._data += part
            return asked.result(30)

    def give(self, daemon: Daemon) -> Answer:
        with self._listen() as listener, ThreadPoolExecutor(1) as pool:
            asked = pool.submit(daemon.ask, "PUT", f"{_CALLS}/takeover")
            connection, _ = listener.accept()
            with connection:
                socket.send_fds(connection, [self._data], self._fds)
            return asked.result(30)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
