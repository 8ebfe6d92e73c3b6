"""How a ``nydusd`` reaches the host of fronts (host.py): quick to load, since it is run often."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nydus_fscache.errors import DaemonError, FscacheError, UsageError
from nydus_fscache.files import claim_root, short_path
from rafs_v6.values import dataclass

if TYPE_CHECKING:
    import subprocess

SOCKET = "fronts.sock"
_POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class Wanted:
    """A front as its command line said it.  Paths are absolute.

    ``kind``: ``fuse`` or ``singleton``; ``waits``: for takeover, in INIT; ``own``: an
    ``Instance`` to mount before the API answers; ``blobs``: BlobEntries to bind before that.
    """

    kind: str
    mountpoint: str
    apisock: str
    instance: str
    supervisor: str
    waits: bool
    cachefiles: str
    own: dict[str, Any] | None
    blobs: list[dict[str, Any]]
    log_file: str
    log_level: str
    log_rotation_mib: int


def connect(root: Path, patience_s: float) -> socket.socket:
    """To the host of a root, which is started where none runs.  Raises ``DaemonError``."""
    deadline = time.monotonic() + patience_s
    started: subprocess.Popen[bytes] | None = None
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with short_path(root / SOCKET) as short:
                connection.connect(short)
            return connection
        except OSError:
            connection.close()
        if started is None or started.poll() is not None:
            started = _start(root)
        if time.monotonic() > deadline:
            raise DaemonError("the host of fronts does not start", hint=f"see {root}/fronts.log")
        time.sleep(_POLL_S)


def _start(root: Path) -> subprocess.Popen[bytes]:
    import subprocess  # noqa: PLC0415 - seldom, and not in the host itself

    claim_root(root)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    log = os.open(root / "fronts.log", flags, 0o600)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "nydus_fscache.api.nydusd.host", "--root", str(root)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
        )  # fmt: skip
    finally:
        os.close(log)


def open_front(root: Path, wanted: Wanted, patience_s: float) -> socket.socket:
    """The connection of a front that runs; raises the error that kept it from starting."""
    deadline = time.monotonic() + patience_s
    while True:
        connection = connect(root, patience_s)
        socket.send_fds(connection, [json.dumps(asdict(wanted)).encode() + b"\n"], [2])
        answer = b""
        while not answer.endswith(b"\n"):
            part = connection.recv(1 << 16)
            if not part:
                break
            answer += part
        if answer:
            break
        connection.close()  # it ended in this moment
        if time.monotonic() > deadline:
            raise DaemonError("the host of fronts gives no answer", hint=f"see {root}/fronts.log")
    error = json.loads(answer).get("error")
    if error is not None:
        found = UsageError if error["exit_code"] == UsageError.exit_code else FscacheError
        failed = found(error["message"], hint=error["hint"])
        failed.exit_code = error["exit_code"]
        raise failed
    return connection
