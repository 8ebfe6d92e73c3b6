"""nydus-snapshotter's supervisor: state and a descriptor that outlive every process of ours.

A transfer is one connection to a unix stream socket, in either direction: the
state's bytes, with descriptors beside the first of them, until the end of the
stream (reference nydusd-interface 5.12, 6.8).  The bytes are ours to choose; of
the descriptors the supervisor keeps the first alone, /dev/cachefiles, so that
one comes first, and the document names them in their order.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from nydus_fscache.errors import DaemonError, FscacheError
from nydus_fscache.handover import state
from nydus_fscache.handover.state import State

VERSION = 1
FIRST = "cachefiles"
MAX_DESCRIPTORS = 16
MAX_DOCUMENT = 64 << 20
PATIENCE_S = 10.0  # what the snapshotter allows a transfer
_CHUNK = 32 << 10
_HINT = "see the log of the snapshotter; a daemon that is started anew needs no supervisor"


def send(path: Path, what: State, descriptors: Mapping[str, int]) -> None:
    """Hand ``what`` and the descriptors to the supervisor that listens at ``path``.

    Raises ``DaemonError``.  The connection is made in any case: the snapshotter waits
    for it without a time limit, whatever the call that asked for this is answered.
    """
    deadline = time.monotonic() + PATIENCE_S
    names = sorted(descriptors, key=lambda name: name != FIRST)[:MAX_DESCRIPTORS]
    document = {"version": VERSION, "descriptors": names, "state": what.document()}
    data = memoryview(json.dumps(document).encode())
    try:
        with _connected(path, deadline) as connection:
            if not names:
                raise DaemonError("there is no descriptor to hand over", hint="bind an image")
            sent = socket.send_fds(connection, [data[:_CHUNK]], [descriptors[n] for n in names])
            while sent < len(data):
                connection.settimeout(_left(deadline))
                sent += connection.send(data[sent:])
    except OSError as e:
        raise DaemonError(f"supervisor {path}: {e}", hint=_HINT) from e


def receive(path: Path) -> tuple[State, dict[str, int]]:
    """What was handed to the supervisor, and the descriptors by name; at least one.

    Raises ``DaemonError``, and ``CacheDirError`` when the state is not of our version.
    Nothing stays open then.
    """
    deadline = time.monotonic() + PATIENCE_S
    received: list[int] = []
    try:
        with _connected(path, deadline) as connection:
            data, received, flags, _ = socket.recv_fds(connection, _CHUNK, MAX_DESCRIPTORS)
            if flags & socket.MSG_CTRUNC:
                raise DaemonError(f"supervisor {path} sends too many descriptors", hint=_HINT)
            whole = bytearray(data)
            while data:
                connection.settimeout(_left(deadline))
                data = connection.recv(_CHUNK)
                whole += data
                if len(whole) > MAX_DOCUMENT:
                    raise DaemonError(f"supervisor {path} sends without end", hint=_HINT)
        found, names = _parse(bytes(whole), path)
        if not received:
            raise DaemonError(f"supervisor {path} has no descriptor", hint=_HINT)
        for fd in received:
            os.set_inheritable(fd, False)
        for fd in received[len(names) :]:
            os.close(fd)
        return found, dict(zip(names, received, strict=False))
    except (OSError, FscacheError) as e:
        for fd in received:
            with contextlib.suppress(OSError):
                os.close(fd)
        if isinstance(e, FscacheError):
            raise
        raise DaemonError(f"supervisor {path}: {e}", hint=_HINT) from e


def _parse(data: bytes, path: Path) -> tuple[State, list[str]]:
    try:
        document = json.loads(data)
        if document["version"] != VERSION:
            raise DaemonError(f"supervisor {path} has version {document['version']}", hint=_HINT)
        names = document["descriptors"]
        if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
            raise TypeError("the descriptors have no names")
        if len(set(names)) != len(names):
            raise ValueError("two descriptors have one name")
        return state.parse(document["state"], f"supervisor {path}", _HINT), names
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise DaemonError(f"supervisor {path} has no state of ours: {e}", hint=_HINT) from e


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
