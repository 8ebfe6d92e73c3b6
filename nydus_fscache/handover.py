"""The service's end of the keeper: descriptors that outlive the process.

Messages on a SOCK_SEQPACKET pair, text, one descriptor where stated:

    service -> keeper   ``keep NAME`` +fd · ``drop NAME`` · ``ready`` · ``bye``
    keeper -> service   ``have NAME`` +fd, for all that is kept · ``end``

A name is kept before what it stands for is used (the fill descriptor before the
mark, the group before its first mark), so that a kill between two steps never
leaves the kernel with something that no process of ours holds.
"""

from __future__ import annotations

import array
import contextlib
import logging
import os
import socket
import threading

from nydus_fscache.errors import DaemonError

log = logging.getLogger("handover")

_MESSAGE = 512


class Handover:
    """``inherited``: what a predecessor left, by name; taken with ``take``."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        os.set_inheritable(fd, False)
        self._lock = threading.Lock()
        self.inherited: dict[str, int] = {}
        while (message := self._receive()) != "end":
            if not message:
                raise DaemonError("the keeper died before it handed over", hint="start again")

    def _receive(self) -> str:
        message, ancillary, _, _ = self._socket.recvmsg(_MESSAGE, socket.CMSG_SPACE(4))
        verb, _, name = message.decode().partition(" ")
        for _, _, data in ancillary:
            received = array.array("i", data[:4])[0]
            os.set_inheritable(received, False)
            self.inherited[name] = received
        return verb

    def _send(self, text: str, fds: list[int]) -> None:
        ancillary = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        )
        with self._lock:
            self._socket.sendmsg([text.encode()], ancillary)

    def take(self, name: str) -> int | None:
        return self.inherited.pop(name, None)

    def keep(self, name: str, fd: int) -> None:
        self._send(f"keep {name}", [fd])

    def drop(self, name: str) -> None:
        self._send(f"drop {name}", [])

    def ready(self) -> None:
        """All that a predecessor left is settled and served."""
        self._send("ready", [])

    def bye(self) -> None:
        """The coming exit is meant; nothing is held by the kernel any more."""
        with contextlib.suppress(OSError):
            self._send("bye", [])

    def wait_for_loss(self) -> None:
        """Return when the keeper is gone."""
        with contextlib.suppress(OSError):
            while self._socket.recv(_MESSAGE):
                pass
