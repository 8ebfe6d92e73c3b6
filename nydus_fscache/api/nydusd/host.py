"""The process that all fronts of a node live in, so that a front costs no interpreter.

usage: python -m nydus_fscache.api.nydusd.host --root DIR

A ``nydusd`` sends what its command line said as a line of JSON over ``DIR/fronts.sock``, with its
standard error beside it, gets ``{}`` or ``{"error": …}`` as a line, and keeps the connection.  It
says ``end`` on SIGTERM and waits for the end of the connection.  A connection that ends without
it is a ``nydusd`` that died: its API ends at once, its mounts stay.  When this process dies all
``nydusd`` end, and the snapshotter starts them again; containers do not notice.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nydus_fscache.api.nydusd import node_checks
from nydus_fscache.api.nydusd.documents import ErrorRing
from nydus_fscache.api.nydusd.engine import NodeDaemon
from nydus_fscache.api.nydusd.front import Front, Identity, State
from nydus_fscache.api.nydusd.fscache import BoundImages
from nydus_fscache.api.nydusd.fuse import FuseMounts
from nydus_fscache.api.nydusd.host_link import SOCKET, Wanted
from nydus_fscache.api.nydusd.layer_view import LayerViews
from nydus_fscache.api.nydusd.mount_points import Instance
from nydus_fscache.api.nydusd.server import Listener, Refused
from nydus_fscache.errors import FscacheError, KernelRefused, UsageError
from nydus_fscache.files import claim_root, short_path
from nydus_fscache.handover.front_state import FrontSupervisor
from nydus_fscache.kernel.syscalls import trim
from nydus_fscache.transport.cachefiles import probe

LOCK = "fronts.lock"
VIEWS = "views"
LINGER_S = 3.0
_LINE = 1 << 20
_FORMAT = "[%(asctime)s] %(levelname)s %(message)s"
_POLL_S = 1.0


class _Hosted:
    """A front that runs.  ``on_exit``: called when its ``exit`` was."""

    def __init__(
        self, wanted: Wanted, root: Path, log: logging.Logger, on_exit: Callable[[], None]
    ) -> None:
        self._wanted = wanted
        self._daemon = NodeDaemon(root, Path(wanted.cachefiles) if wanted.cachefiles else None)
        errors = ErrorRing()
        mounts: FuseMounts | None = None
        if wanted.kind == "fuse":
            self._service: FuseMounts | BoundImages = FuseMounts(
                Path(wanted.mountpoint), self._daemon, errors, log, LayerViews(root / VIEWS, log)
            )
            mounts = self._service
        else:
            self._service = BoundImages(self._daemon, errors)
        supervisor = Path(wanted.supervisor) if wanted.supervisor else None
        self.front = Front(
            Identity(wanted.instance or None, supervisor), self._service, self._daemon,
            FrontSupervisor(), errors, State.INIT if wanted.waits else State.RUNNING, log, on_exit,
        )  # fmt: skip
        if not wanted.waits:
            # the first answer is RUNNING: what the command line names must be there
            if isinstance(self._service, BoundImages):
                if (lacks := probe.missing()) is not None:
                    raise KernelRefused(lacks.detail, hint=lacks.remedy)
                self._daemon.start()
                for entry in wanted.blobs:
                    self._service.bind(entry)
            if mounts is not None and wanted.own is not None:
                mounts.mount(Instance(**wanted.own))
        try:
            self._listener = Listener(Path(wanted.apisock)) if wanted.apisock else None
        except (OSError, UsageError):
            if not wanted.waits:
                self._service.end()  # nobody could: there is no front
            raise
        if self._listener is not None:
            self._listener.serve(self.front.answer)
        self._preparing = threading.Thread(
            target=self._prepare, args=(log,), name="prepare", daemon=True
        )
        self._preparing.start()

    def _prepare(self, log: logging.Logger) -> None:
        """What the first mount would wait for; and what would keep it from being seen."""
        for finding in node_checks.at_start():
            if not finding.ok:
                log.warning("%s: %s; %s", finding.name, finding.detail, finding.remedy)
        trim()
        try:
            self._daemon.start()
        except FscacheError as e:
            log.error("the daemon of the node does not start: %s (%s)", e, e.hint)
            return
        try:
            self._daemon.transport()
        except FscacheError as e:
            log.error("no image can be mounted here: %s; %s", e, e.hint)

    def end(self) -> None:
        """By SIGTERM.  With a supervisor this may be a restart: a successor takes the mounts
        over, and knows by the socket's file that it is one."""
        supervised = bool(self._wanted.supervisor)
        if self._wanted.own is not None or not supervised:
            self._service.end()
        self._close(leave_file=supervised)
        self._preparing.join()  # a daemon that is just being started would stay
        self._daemon.stop_if_idle()

    def died(self) -> None:
        """What is left is what a process that was killed leaves."""
        self._close(leave_file=True)

    def exited(self) -> None:
        """After ``exit``: the successor has it all."""
        self._close(leave_file=False)

    def _close(self, *, leave_file: bool) -> None:
        if self._listener is not None:
            self._listener.close(leave_file=leave_file)


class _Host:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._fronts = 0
        self._idle_since = time.monotonic()
        self._numbers = iter(range(1, sys.maxsize))

    def idle_for(self) -> float:
        with self._lock:
            return time.monotonic() - self._idle_since if not self._fronts else 0.0

    def serve(self, connection: socket.socket) -> None:
        """A front from its first line to its end."""
        with self._lock:
            self._fronts += 1
        try:
            with connection:
                self._front(connection)
        except OSError as e:
            logging.getLogger("nydusd").info("a front ended early: %s", e)
        finally:
            with self._lock:
                self._fronts -= 1
                self._idle_since = time.monotonic()

    def _front(self, connection: socket.socket) -> None:
        log = logging.getLogger(f"front.{next(self._numbers)}")
        log.propagate = False
        try:
            self._serve(connection, log)
        finally:
            for handler in log.handlers[:]:
                log.removeHandler(handler)
                handler.close()

    def _serve(self, connection: socket.socket, log: logging.Logger) -> None:
        line, stderr = _first_line(connection)
        try:
            wanted = Wanted(**json.loads(line))
            log.addHandler(_handler(wanted, stderr))
            log.setLevel(wanted.log_level)
            hosted = _Hosted(wanted, self._root, log, lambda: _shut(connection))
        except (FscacheError, Refused, OSError, ValueError, TypeError) as e:
            connection.sendall(json.dumps({"error": _told(e)}).encode() + b"\n")
            return
        finally:
            os.close(stderr)
        with contextlib.suppress(OSError):  # it died meanwhile, as the next line finds out
            connection.sendall(b"{}\n")
        log.info("%s %s", hosted.front.state.value, wanted.mountpoint or wanted.cachefiles)
        says_end = _says_end(connection)
        if hosted.front.exit_asked.is_set():
            hosted.exited()
        elif says_end:
            hosted.end()
        else:
            hosted.died()


def _first_line(connection: socket.socket) -> tuple[bytes, int]:
    """The request, and the descriptor of the sender's standard error."""
    data, fds, _, _ = socket.recv_fds(connection, _LINE, 1)
    while data and not data.endswith(b"\n") and len(data) < _LINE:
        data += connection.recv(_LINE)
    if not fds:
        raise OSError("no standard error came with the request")
    return data, fds[0]


def _handler(wanted: Wanted, stderr: int) -> logging.Handler:
    """As ``--log-file`` and ``--log-rotation-size`` ask for, else to the front's stderr."""
    if wanted.log_file:
        from logging.handlers import RotatingFileHandler  # noqa: PLC0415 - half a MiB

        size = wanted.log_rotation_mib << 20
        handler: logging.Handler = RotatingFileHandler(
            wanted.log_file, maxBytes=size, backupCount=10 if size else 0
        )
    else:
        handler = logging.StreamHandler(os.fdopen(os.dup(stderr), "w", buffering=1))
    handler.setFormatter(logging.Formatter(_FORMAT, "%Y-%m-%d %H:%M:%S %z"))
    return handler


def _shut(connection: socket.socket) -> None:
    """Who reads from it finds its end."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)


def _says_end(connection: socket.socket) -> bool:
    """Waits until it says something, or ends."""
    with contextlib.suppress(OSError):
        return connection.recv(16).startswith(b"end")
    return False


def _told(error: Exception) -> dict[str, Any]:
    hint = getattr(error, "hint", None)
    code = getattr(error, "exit_code", 1)
    return {"message": str(error), "hint": hint, "exit_code": code}


def main() -> int:
    root = Path(sys.argv[sys.argv.index("--root") + 1])
    logging.basicConfig(level=logging.INFO, format=_FORMAT)
    claim_root(root)
    lock = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0  # another one was quicker
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = root / SOCKET
    path.unlink(missing_ok=True)
    old = os.umask(0o177)
    with short_path(path) as short:
        listener.bind(short)
    os.umask(old)
    listener.listen(128)
    listener.settimeout(_POLL_S)
    host = _Host(root)
    while host.idle_for() < LINGER_S:
        with contextlib.suppress(TimeoutError):
            connection, _ = listener.accept()
            connection.settimeout(None)
            threading.Thread(target=host.serve, args=(connection,), daemon=True).start()
    path.unlink(missing_ok=True)  # a nydusd that comes now starts another
    return 0


if __name__ == "__main__":
    sys.exit(main())
