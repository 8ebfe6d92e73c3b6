"""A front's state at nydus-snapshotter's supervisor: a document, and a descriptor that it demands.

The descriptors that matter are the keeper's; the one that goes with the document is a memory
file of its bytes, because a transfer without a descriptor is an error to the supervisor
(docs/nydusd.md, "Supervisor").
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from nydus_fscache.errors import DaemonError

VERSION = 1
PATIENCE_S = 10.0
_LIMIT = 64 << 20
_CHUNK = 32 << 10
_MAX_DESCRIPTORS = 16
_HINT = "see the log of the snapshotter; a daemon that is started anew needs no supervisor"


class FrontSupervisor:
    """An ``api.nydusd.front.Supervisor``."""

    def send(self, path: Path, document: dict[str, Any]) -> None:
        """Raises ``DaemonError``.  The snapshotter waits for the connection without a limit, so
        it is made in any case."""
        data = json.dumps({"version": VERSION, **document}).encode()
        fd = os.memfd_create("nydusd-state", os.MFD_CLOEXEC)
        try:
            with _connected(path) as connection:
                sent = socket.send_fds(connection, [data[:_CHUNK]], [fd])
                connection.sendall(data[sent:])
        except OSError as e:
            raise DaemonError(f"supervisor {path}: {e}", hint=_HINT) from e
        finally:
            os.close(fd)

    def receive(self, path: Path) -> dict[str, Any]:
        """Raises ``DaemonError``."""
        try:
            with _connected(path) as connection:
                data, fds, _, _ = socket.recv_fds(connection, _CHUNK, _MAX_DESCRIPTORS)
                for fd in fds:
                    os.close(fd)
                whole = bytearray(data)
                while data and len(whole) <= _LIMIT:
                    data = connection.recv(_CHUNK)
                    whole += data
            document = json.loads(whole)
            if document["version"] != VERSION:
                raise DaemonError(f"supervisor {path}: version {document['version']}", hint=_HINT)
            return dict(document)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
            raise DaemonError(f"supervisor {path}: {e}", hint=_HINT) from e


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(PATIENCE_S)
        connection.connect(str(path))
    except BaseException:
        connection.close()
        raise
    return connection
