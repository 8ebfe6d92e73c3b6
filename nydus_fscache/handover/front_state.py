"""A front's state at nydus-snapshotter's supervisor: a document, and a descriptor that it demands.

The descriptors that matter are the keeper's; the one that goes with the document is an empty
memory file, because a transfer without a descriptor is an error to the supervisor.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nydus_fscache.errors import DaemonError
from nydus_fscache.handover import transfer

VERSION = 1


class FrontSupervisor:
    """An ``api.nydusd.front.Supervisor``."""

    def send(self, path: Path, document: dict[str, Any]) -> None:
        """Raises ``DaemonError``."""
        fd = os.memfd_create("nydusd-state", os.MFD_CLOEXEC)
        try:
            transfer.send(path, json.dumps({"version": VERSION, **document}).encode(), [fd])
        finally:
            os.close(fd)

    def receive(self, path: Path) -> dict[str, Any]:
        """Raises ``DaemonError``."""
        data, received = transfer.receive(path)
        transfer.close_all(received)
        try:
            document = json.loads(data)
            if document["version"] != VERSION:
                version = document["version"]
                raise DaemonError(f"supervisor {path}: version {version}", hint=transfer.HINT)
            return dict(document)
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise DaemonError(f"supervisor {path}: {e}", hint=transfer.HINT) from e
