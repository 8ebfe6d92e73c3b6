"""A transfer with nydus-snapshotter's supervisor: bytes, with descriptors beside the first of them.

One connection to a unix stream socket in either direction, until the end of the stream, within
``PATIENCE_S`` (docs/nydusd.md, "Supervisor").  The connection is made in any case: the snapshotter
waits for it without a limit.  Of the descriptors it keeps the first alone.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from nydus_fscache.errors import DaemonError

MAX_DESCRIPTORS = 16
MAX_DOCUMENT = 64 << 20
PATIENCE_S = 10.0  # what the snapshotter allows a transfer
HINT = "see the log of the snapshotter; a daemon that is started anew needs no supervisor"
_CHUNK = 32 << 10


def send(path: Path, document: bytes, descriptors: Sequence[int]) -> None:
    """Raises ``DaemonError``; also when there is no descriptor, which the supervisor demands."""
    deadline = time.monotonic() + PATIENCE_S
    data = memoryview(document)
    try:
        with _connected(path, deadline) as connection:
            if not descriptors:
                raise DaemonError("there is no descriptor to hand over", hint="bind an image")
            sent = socket.send_fds(connection, [data[:_CHUNK]], descriptors)
            while sent < len(data):
                connection.settimeout(_left(deadline))
                sent += connection.send(data[sent:])
    except OSError as e:
        raise DaemonError(f"supervisor {path}: {e}", hint=HINT) from e


def receive(path: Path) -> tuple[bytes, list[int]]:
    """The bytes and the descriptors, which are the caller's to close and are not inheritable.

    Raises ``DaemonError``; nothing stays open then.
    """
    deadline = time.monotonic() + PATIENCE_S
    received: list[int] = []
    try:
        with _connected(path, deadline) as connection:
            data, received, flags, _ = socket.recv_fds(connection, _CHUNK, MAX_DESCRIPTORS)
            for fd in received:
                os.set_inheritable(fd, False)
            if flags & socket.MSG_CTRUNC:
                raise DaemonError(f"supervisor {path} sends too many descriptors", hint=HINT)
            whole = bytearray(data)
            while data:
                connection.settimeout(_left(deadline))
                data = connection.recv(_CHUNK)
                whole += data
                if len(whole) > MAX_DOCUMENT:
                    raise DaemonError(f"supervisor {path} sends without end", hint=HINT)
        return bytes(whole), received
    except (OSError, DaemonError) as e:
        close_all(received)
        if isinstance(e, DaemonError):
            raise
        raise DaemonError(f"supervisor {path}: {e}", hint=HINT) from e


def close_all(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        os.close(fd)


def _connected(path: Path, deadline: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_left(deadline))
        connection.connect(str(path))
    except BaseException:
        connection.close()
        raise
    return connection


def _left(deadline: float) -> float:
    """Never 0, which would mean not to wait at all."""
    return max(0.001, deadline - time.monotonic())
