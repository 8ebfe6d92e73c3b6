"""Talk to the daemon of a root, and start it where none runs.

Knows nothing of images or kernels, so that commands which only talk start fast.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from nydus_fscache.errors import DaemonError, FscacheError
from nydus_fscache.handover.commands import daemon_argv

START_PATIENCE_S = 20.0
CALL_PATIENCE_S = 120.0
_POLL_S = 0.02


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=CALL_PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Client:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._path = root / "api.sock"

    def call(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        """The answer's document; raises the daemon's error as the exception that it was."""
        connection = _Connection(self._path)
        target = f"{path}?{urlencode(query)}" if query else path
        try:
            connection.request(method, target, None if body is None else json.dumps(body))
            response = connection.getresponse()
            document = json.loads(response.read())
        except (FileNotFoundError, ConnectionRefusedError) as e:
            raise DaemonError(
                f"no daemon runs in {self.root}", hint="nydus-fscache mount starts one"
            ) from e
        except (OSError, http.client.HTTPException, ValueError) as e:
            raise DaemonError(
                f"the daemon of {self.root} does not answer: {e}", hint="see its log, daemon.log"
            ) from e
        finally:
            connection.close()
        if response.status != 200:
            raise _as_exception(document["error"])
        return document

    def runs(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(self._path))
            return True
        return False

    def start_daemon(self) -> None:
        """Start keeper and service detached, unless a daemon answers; returns when it does."""
        if self.runs():
            return
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.root / "start-error.json").unlink(missing_ok=True)
        pid = self._spawn()
        deadline = time.monotonic() + START_PATIENCE_S
        while not self.runs():
            if os.waitpid(pid, os.WNOHANG)[0]:
                if self.runs():  # another mount was quicker
                    return
                raise self._start_error()
            if time.monotonic() > deadline:
                raise DaemonError(
                    "the daemon did not start in time", hint=f"see {self.root / 'daemon.log'}"
                )
            time.sleep(_POLL_S)

    def wait_for_successor(self, pid: int) -> dict[str, Any]:
        """After an upgrade was begun: the status of the service that is not ``pid``."""
        deadline = time.monotonic() + CALL_PATIENCE_S
        while time.monotonic() < deadline:
            # a service that makes way accepts no call; this one waits for the next service
            with contextlib.suppress(DaemonError):
                document: dict[str, Any] = self.call("GET", "/v1/status")
                if document["pid"] != pid:
                    return document
            time.sleep(_POLL_S)
        raise DaemonError("no new service answers", hint="see its log, daemon.log")

    def _spawn(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        log = os.open(self.root / "daemon.log", flags, 0o600)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        program, service = daemon_argv(self.root)
        try:
            return os.posix_spawn(
                sys.executable,
                [*program, *service],
                # a unit that the caller belongs to is not ours to report to
                {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, null, 0),
                    (os.POSIX_SPAWN_DUP2, null, 1),
                    (os.POSIX_SPAWN_DUP2, log, 2),
                ],
                setsid=True,
            )
        finally:
            os.close(log)
            os.close(null)

    def _start_error(self) -> FscacheError:
        path = self.root / "start-error.json"
        try:
            error = json.loads(path.read_text())["error"]
            path.unlink()
            return _as_exception(error)
        except (OSError, ValueError, KeyError):
            return DaemonError("the daemon did not start", hint=f"see {self.root / 'daemon.log'}")

    def wait_for_end(self) -> None:
        """After ``stop``: return when the daemon has let go of its root."""
        import fcntl  # noqa: PLC0415 - only here

        deadline = time.monotonic() + CALL_PATIENCE_S
        with (self.root / "lock").open("rb") as lock:
            while time.monotonic() < deadline:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    return
                time.sleep(_POLL_S)
        raise DaemonError("the daemon does not end", hint="see its log, daemon.log")


def _as_exception(error: dict[str, Any]) -> FscacheError:
    """The class goes by the exit code: the error may be of a module that is not loaded here."""
    kinds = {kind.exit_code: kind for kind in FscacheError.__subclasses__()}
    kind = kinds.get(int(error.get("exit_code", 0)), FscacheError)
    return kind(str(error.get("message")), hint=error.get("hint"))
