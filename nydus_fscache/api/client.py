"""Talk to the daemon of a root, and start it where none runs.

Knows nothing of images or kernels, and speaks the little HTTP that it needs by itself, so that
commands which only talk start fast.  A daemon that is ending, or being replaced, is waited for.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nydus_fscache import errors
from nydus_fscache.errors import (
    CacheDirError,
    DaemonEnding,
    DaemonError,
    FscacheError,
    NoDaemon,
    RootInUse,
)
from nydus_fscache.files import claim_root, node_root, short_path
from nydus_fscache.handover.commands import daemon_argv

CACHEFILES = "NYDUS_FSCACHE_CACHEFILES"  # environment of a daemon: the directory of cachefiles
START_PATIENCE_S = 60.0  # as the keeper gives a service; an emulated machine needs half of it
CALL_PATIENCE_S = 120.0
_POLL_S = 0.005
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/")
_OK = 200
_SYSTEMD = Path("/run/systemd/system")
_FIRST_FD = 3
_LITTLE_ROOM = 1 << 20


class _Lost(OSError):
    """The daemon closed the connection without an answer."""


class _Made:
    """A value, or what makes it: once."""

    def __init__(self, value: Any) -> None:
        self._value, self._is_made = value, not callable(value)
        self._error: BaseException | None = None

    def make(self) -> None:
        if not self._is_made:
            self._is_made = True
            try:
                self._value = self._value()
            except BaseException as e:
                self._error = e

    def check(self) -> Any:
        """The value, when it was made; raises what making it raised."""
        if self._error is not None:
            raise self._error
        return self._value


class Client:
    def __init__(self, root: Path, patience_s: float = CALL_PATIENCE_S) -> None:
        """``patience_s``: for the next bytes of an answer."""
        self.root = root.absolute()  # a daemon that is started has another working directory
        self._patience_s = patience_s

    # -- calls -------------------------------------------------------------------------------

    def call(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        """The answer's document; raises the daemon's error as the exception that it was, and
        ``NoDaemon`` when none runs."""
        try:
            return self._call(method, path, body, query)
        except _Lost as e:
            raise self._no_answer(e) from e

    def text(self, path: str) -> str:
        """An answer that is not JSON."""
        try:
            answer: str = self._call("GET", path, None, {}, str)
        except _Lost as e:
            raise self._no_answer(e) from e
        return answer

    def _call(
        self,
        method: str,
        path: str,
        body: Any,
        query: dict[str, str],
        parse: Callable[[str], Any] = json.loads,
    ) -> Any:
        target = f"{path}?{_encoded(query)}" if query else path
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        request = f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
        deadline = time.monotonic() + CALL_PATIENCE_S
        while True:
            try:
                status, text = self._exchange(request)
                document = (parse if status == _OK else json.loads)(text)
            except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as e:
                raise NoDaemon(
                    f"no daemon runs in {self.root}", hint="nydus-fscache mount starts one"
                ) from e
            except (BrokenPipeError, ConnectionResetError) as e:
                raise _Lost(e.errno, e.strerror) from e
            except (OSError, ValueError) as e:
                raise self._no_answer(e) from e
            if status == _OK:
                return document
            error = _as_exception(document["error"])
            if not isinstance(error, DaemonEnding) or time.monotonic() > deadline:
                raise error
            time.sleep(_POLL_S)  # it ends, or another version takes its place

    def _no_answer(self, error: Exception) -> DaemonError:
        return DaemonError(
            f"the daemon of {self.root} does not answer: {error}", hint="see its log, daemon.log"
        )

    def _exchange(self, request: bytes) -> tuple[int, str]:
        with self._connected() as connection:
            connection.settimeout(self._patience_s)
            with contextlib.suppress(BrokenPipeError):  # it may have refused before reading all
                connection.sendall(request)
            parts = []
            while part := connection.recv(1 << 16):
                parts.append(part)
        head, _, data = b"".join(parts).partition(b"\r\n\r\n")
        if not head:
            raise ConnectionResetError(0, "it closed the connection")
        return int(head.split(None, 2)[1]), data.decode()

    def _connected(self) -> socket.socket:
        """``OSError`` when nobody listens."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with short_path(self.root / "api.sock") as path:
                connection.connect(path)
        except BaseException:
            connection.close()
            raise
        return connection

    def runs(self) -> bool:
        with contextlib.suppress(OSError):
            self._connected().close()
            return True
        return False

    # -- start and end -----------------------------------------------------------------------

    def call_first(self, method: str, path: str, body: Any) -> Any:
        """A call that starts a daemon where none runs, which ends again when the call fails, is
        interrupted, and nobody else uses it.

        ``body``: or a function that makes it, which is called while the daemon starts.
        """
        made = _Made(body)
        while True:
            try:
                started = self.start_daemon(made.make)
            except BaseException:
                made.check()  # that error came first
                raise
            try:
                made.make()
                return self._call(method, path, made.check(), {})
            except NoDaemon:
                continue  # it has ended since
            except _Lost as e:
                if self.runs():
                    raise self._no_answer(e) from e
                continue  # it ended before it took the call
            except BaseException:
                if started:
                    self._leave_nothing()
                raise

    def _leave_nothing(self) -> None:
        """The daemon decides whether anybody uses it."""
        with contextlib.suppress(DaemonError):
            if self.call("POST", "/v1/stop", {"if_idle": True})["stopped"]:
                self.wait_for_end()

    def start_daemon(self, meanwhile: Callable[[], None] = lambda: None) -> bool:
        """Start keeper and service detached, unless a daemon answers; returns when it does: was
        it started here?  ``meanwhile``, which raises nothing, is done while it starts."""
        deadline = time.monotonic() + START_PATIENCE_S
        started = False
        while not self.runs():
            claim_root(self.root)
            try:
                started = self._start(deadline, meanwhile)
            except RootInUse:  # one that is ending, or was started in the same moment
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_S)
        return started

    def serve_again(self) -> None:
        """What a daemon that crashed left mounted, even though nothing is to be done besides."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, FscacheError):
            state = json.loads((self.root / "state.json").read_bytes())
            if not state["bindings"]:
                return
            # an answer: the socket of one that dies takes connections too
            if not self.call_first("GET", "/v1/status", None)["mounts"]:
                self._leave_nothing()  # all was unmounted before, or meanwhile

    def _start(self, deadline: float, meanwhile: Callable[[], None]) -> bool:
        """False when another was quicker: ours has seen it then and ended, or it would serve when
        that other one is long gone, and nobody has asked for it.  Or a unit runs it."""
        if unit := self._unit():
            self._start_unit(unit)
            return False
        (self.root / "start-error.json").unlink(missing_ok=True)
        pid = self._spawn()
        meanwhile()
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            runs = self.runs()
            if ended:
                if runs:
                    return False
                raise self._start_error(os.waitstatus_to_exitcode(status))
            if runs and self._is_kept_by(pid):
                return True
            if time.monotonic() > deadline:
                raise DaemonError(
                    "the daemon did not start in time", hint=f"see {self.root / 'daemon.log'}"
                )
            time.sleep(_POLL_S)

    def _is_kept_by(self, pid: int) -> bool:
        with contextlib.suppress(NoDaemon, _Lost):
            return bool(self._call("GET", "/v1/status", None, {})["keeper_pid"] == pid)
        return False

    def _unit(self) -> str:
        """The unit that is configured for this root, where systemd runs."""
        is_ours = os.path.realpath(node_root()) == os.path.realpath(self.root)
        return os.environ.get("NYDUS_FSCACHE_UNIT", "") if is_ours and _SYSTEMD.exists() else ""

    def _start_unit(self, unit: str) -> None:
        import subprocess  # noqa: PLC0415 - only here

        started = subprocess.run(
            ["systemctl", "start", unit], capture_output=True, text=True, check=False
        )
        if not self.runs():
            with contextlib.suppress(OSError, ValueError, KeyError):
                error = json.loads((self.root / "start-error.json").read_text())["error"]
                raise _as_exception(error)
            raise DaemonError(
                f"{unit} did not start: {started.stderr.strip() or started.returncode}",
                hint=f"journalctl -u {unit}",
            )

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
        """Nothing of ours stays open there: no lock of the caller, no pipe, no directory."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            log = os.open(self.root / "daemon.log", flags, 0o600)
        except OSError as e:
            raise CacheDirError(
                f"cannot write {self.root / 'daemon.log'}: {e.strerror}",
                hint="free some space, or choose another --root",
            ) from e
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        program, service = daemon_argv(self.root)
        # a unit that the caller belongs to is not ours to report to
        environment = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"}

        def in_child() -> None:
            os.setsid()
            os.chdir("/")
            for fd, standard in ((null, 0), (null, 1), (log, 2)):
                os.dup2(fd, standard)
            os.closerange(_FIRST_FD, os.sysconf("SC_OPEN_MAX"))
            os.execve(program[0], [*program, *service], environment)

        try:
            return _forked(in_child)
        finally:
            os.close(log)
            os.close(null)

    def _start_error(self, code: int) -> FscacheError:
        path = self.root / "start-error.json"
        with contextlib.suppress(OSError, ValueError, KeyError):
            error = json.loads(path.read_text())["error"]
            path.unlink()
            return _as_exception(error)
        disk = os.statvfs(self.root)
        if code == CacheDirError.exit_code and disk.f_bavail * disk.f_frsize < _LITTLE_ROOM:
            return CacheDirError(
                f"no space left on the disk of {self.root}",
                hint="free some space, or choose another --root",
            )
        if code == CacheDirError.exit_code:  # the reason was taken by another who starts one
            return RootInUse(f"a daemon cannot use {self.root}", hint="see its log, daemon.log")
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


def _encoded(query: dict[str, str]) -> str:
    def quoted(text: str) -> str:
        data = os.fsencode(text)
        return "".join(chr(b) if b in _UNRESERVED else f"%{b:02X}" for b in data)

    return "&".join(f"{quoted(name)}={quoted(value)}" for name, value in query.items())


def _forked(in_child: Callable[[], None]) -> int:
    """The child's pid.  It must end in another program; while it does not, nothing of this one
    runs in it."""
    pid = os.fork()
    if pid == 0:
        try:
            in_child()
        finally:
            os._exit(127)
    return pid


def _as_exception(error: dict[str, Any]) -> FscacheError:
    """By its kind, or else by the exit code: the error may be of a module that is not loaded
    here."""
    kind = getattr(errors, str(error.get("kind")), None)
    if not (isinstance(kind, type) and issubclass(kind, FscacheError)):
        kinds = {kind.exit_code: kind for kind in FscacheError.__subclasses__()}
        kind = kinds.get(int(error.get("exit_code", 0)), FscacheError)
    return kind(str(error.get("message")), hint=error.get("hint"))
