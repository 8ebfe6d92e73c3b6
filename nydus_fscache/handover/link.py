"""The service's end of the keeper: descriptors that outlive the process.

Messages on a SOCK_SEQPACKET pair, text, one descriptor where stated:

    service -> keeper   ``keep NAME`` +fd · ``barrier`` +pipe · ``drop NAME`` · ``progress``
                        ``ready`` · ``bye`` · ``upgrade KEEPER SERVICE``, two commands (words
                        end with a zero byte, and the first command with another)
    keeper -> service   ``have NAME`` +fd, for all that is kept · ``barriers`` · ``end``

``barriers`` says that the keeper hands on what it gets (systemd.py): it closes the
pipe of a ``barrier`` when it has handed on everything that came before.

A name is kept before what it stands for is used (the fill descriptor before the
mark, the group before its first mark), so that a kill between two steps never
leaves the kernel with something that no process of ours holds.

The service watches the keeper, and starts another when it is gone: what was
kept is open here too, and goes to the new one.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import logging
import mmap
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator

from nydus_fscache.errors import DaemonError
from nydus_fscache.handover import fail_pending

log = logging.getLogger("handover")

_MESSAGE = 512
_RENEWAL_PATIENCE_S = 10.0
_TAKE_OVER_PATIENCE_S = 30.0
_BARRIER_PATIENCE_MS = 10_000
_RENEWAL_PAUSE_S = 0.1


class Handover:
    """``inherited``: what a predecessor left, by name; taken with ``take``."""

    @classmethod
    def of_service(cls, command: str) -> Handover:
        """In a process that a keeper started; raises ``DaemonError``, which names the command that
        starts keepers."""
        try:
            fd = int(os.environ.pop("NYDUS_KEEPER_FD"))
        except (KeyError, ValueError) as e:
            raise DaemonError("the service is started by the keeper", hint=f"use {command}") from e
        return cls(fd)

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        os.set_inheritable(fd, False)
        self._socket.settimeout(_TAKE_OVER_PATIENCE_S)
        self._lock = threading.Condition()
        self._held: dict[str, int] = {}
        self._ending = False
        self._promise = ""  # said last of the coming exit: a new keeper must know it too
        self._barriers = False
        self._direct = -1
        self.keeper_pid = os.getppid()
        self.inherited: dict[str, int] = {}
        try:
            while (message := self._receive()) != "end":
                if not message:
                    raise DaemonError("the keeper died before it handed over", hint="start again")
        except TimeoutError:
            raise DaemonError("the keeper hands nothing over", hint="is it stopped?") from None
        self._socket.settimeout(None)
        _bound_sends(self._socket)
        self._make_way()
        self._held.update(self.inherited)

    def _receive(self) -> str:
        message, ancillary, _, _ = self._socket.recvmsg(_MESSAGE, socket.CMSG_SPACE(4))
        verb, _, name = message.decode().partition(" ")
        self._barriers = self._barriers or verb == "barriers"
        for _, _, data in ancillary:
            received = array.array("i", data[:4])[0]
            os.set_inheritable(received, False)
            self.inherited[name] = received
        return verb

    def _make_way(self) -> None:
        """Give up numbers that the kernel is still owed an answer for.

        Answers are matched by number: if one of ours were closed before the old
        event is answered, a new event could get its number, and the answer that is
        meant for it would release the old reader.  The C core then occupies them.
        """
        journal = self.inherited.get("journal")
        if journal is None:
            return
        with mmap.mmap(journal, 0, prot=mmap.PROT_READ) as memory:
            owed = fail_pending.owed(memory)
        for name, fd in self.inherited.items():
            if fd in owed:
                self.inherited[name] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(owed) + 1)
                os.close(fd)
        if self._socket.fileno() in owed:  # it goes when a new keeper comes
            moved = fcntl.fcntl(self._socket, fcntl.F_DUPFD_CLOEXEC, max(owed) + 1)
            self._socket.close()
            self._socket = socket.socket(fileno=moved)

    def take(self, name: str) -> int | None:
        return self.inherited.pop(name, None)

    def keep(self, name: str, fd: int) -> None:
        """``fd`` stays open until ``drop``: a new keeper gets it too."""
        with self._lock:
            self._held[name] = fd
            self._send(f"keep {name}", fd)
            if self._barriers:
                self._wait_until_handed_on()

    def _wait_until_handed_on(self) -> None:
        """Or the kernel had, after a kill of keeper and service, what nobody holds."""
        ours, theirs = os.pipe()
        try:
            try:
                self._send("barrier", theirs)
            finally:
                os.close(theirs)
            closed = select.poll()
            closed.register(ours, 0)
            if not closed.poll(_BARRIER_PATIENCE_MS):
                log.error("the keeper (%d) is slow", self.keeper_pid)
        finally:
            os.close(ours)

    def direct(self) -> int:
        """A descriptor that ``keep NAME`` can be sent by without waiting for anything.

        Whoever the keeper is, it is the same number.  What is sent so must be given to ``keep``
        too, soon.
        """
        with self._lock:
            if self._direct < 0:
                self._direct = fcntl.fcntl(self._socket.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
            return self._direct

    def drop(self, name: str) -> None:
        """Before the descriptor is closed."""
        with self._lock:
            self._held.pop(name, None)
            self._send(f"drop {name}")

    def progress(self) -> None:
        """One more step of the start is done: the time that it may take begins anew."""
        with self._lock, contextlib.suppress(DaemonError):
            self._send("progress")

    def ready(self) -> None:
        """All that a predecessor left is settled and served."""
        with self._lock:
            self._send("ready")

    def bye(self) -> None:
        """The coming exit is meant; nothing is held by the kernel any more."""
        with self._lock:
            self._promise = "bye"
            self._send("bye")
            self._ending = True

    def upgrade(self, program: list[str], service: list[str]) -> None:
        """The coming exit is for a successor, which the keeper starts by this command; when this
        returns, whatever this process dies of.  Raises ``DaemonError``: nothing has changed."""
        with self._lock:
            before, self._promise = self._promise, "upgrade " + "\0".join([*program, "", *service])
            try:
                self._send(self._promise)
            except BaseException:
                self._promise = before
                raise

    @contextlib.contextmanager
    def journal(self) -> Iterator[int]:
        """The event journal's descriptor, inheritable, for a program that has to look at it."""
        copy = os.dup(self._held["journal"])
        try:
            os.set_inheritable(copy, True)
            yield copy
        finally:
            os.close(copy)

    def _send(self, text: str, fd: int | None = None) -> None:
        """With the lock.  When the keeper is lost, returns once another holds everything."""
        try:
            _send_one(self._socket, text, fd)
        except OSError:
            lost = self._socket
            renewed = self._lock.wait_for(lambda: self._socket is not lost, _RENEWAL_PATIENCE_S)
            if not renewed:
                raise DaemonError("the keeper is lost", hint="see the log") from None

    # -- the keeper's end ----------------------------------------------------------------------

    def watch(self, program: list[str], service: list[str]) -> None:
        """Start a new keeper by these commands whenever it is gone; returns when this ends."""
        while True:
            with contextlib.suppress(OSError):
                while self._socket.recv(_MESSAGE):
                    pass
            if self._ending:
                return
            log.error("the keeper (%d) is gone: starting another", self.keeper_pid)
            try:
                self._renew(program, service)
                log.warning("keeper %d holds everything again", self.keeper_pid)
            except OSError as e:
                log.error("no new keeper: %s", e)
            time.sleep(_RENEWAL_PAUSE_S)

    def _renew(self, program: list[str], service: list[str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        _bound_sends(ours)
        with theirs:
            os.set_inheritable(theirs.fileno(), True)
            pid = os.posix_spawn(
                program[0],
                [*program, "--adopt", str(os.getpid()), *service],
                {**os.environ, "NYDUS_KEEPER_FD": str(theirs.fileno())},
                setsid=True,
            )
        threading.Thread(target=os.waitpid, args=(pid, 0), name="zombie", daemon=True).start()
        self_fd = os.pidfd_open(os.getpid())
        try:
            with self._lock:
                _send_one(ours, "keep service", self_fd)
                for name, fd in self._held.items():  # the group is among the first
                    _send_one(ours, f"keep {name}", fd)
                if self._promise:
                    _send_one(ours, self._promise, None)
                self._socket.close()
                if self._direct >= 0:
                    os.dup2(ours.fileno(), self._direct, inheritable=False)
                self._socket, self.keeper_pid = ours, pid
                self._barriers = False  # systemd listens only to the one that it started
                self._lock.notify_all()
        finally:
            os.close(self_fd)


def _bound_sends(to: socket.socket) -> None:
    """A keeper that is stopped takes nothing: a send is an error then, as when it is gone."""
    limit = struct.pack("ll", int(_RENEWAL_PATIENCE_S), 0)  # struct timeval
    to.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _send_one(to: socket.socket, text: str, fd: int | None) -> None:
    ancillary = []
    if fd is not None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    to.sendmsg([text.encode()], ancillary)


def signal_pipe() -> tuple[int, int]:
    """Of a service: a pipe that can be read when it is to end, by SIGTERM or SIGINT.

    The interpreter writes to it from whichever thread got the signal: the main thread looks for
    signals between two steps only, and could be about to wait for ever.
    """
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(theirs, False)
    signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return ours, theirs
