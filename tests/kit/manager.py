"""A service manager that speaks systemd's protocol and obeys the unit file of ours.

What the real one does (sd_notify(3), sd_listen_fds(3), systemd.service(5)): only the
main process is heard (NotifyAccess=main); the store holds descriptors under names, and a
name may be there more than once; at start they are descriptors 3 and up.
"""

from __future__ import annotations

import array
import configparser
import os
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import nydus_fscache

PATIENCE_S = 30
RESOURCES = Path(nydus_fscache.__file__).parent / "resources"
UNIT = "nydus-fscache.service"

# argv: the descriptors to pass, joined by commas; then the command
_EXEC = """
import fcntl, os, sys
high = [fcntl.fcntl(int(n), fcntl.F_DUPFD, 10000) for n in sys.argv[1].split(",") if n]
for at, fd in enumerate(high):
    os.dup2(fd, 3 + at, inheritable=True)
    os.close(fd)
os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


def unit_file(name: str) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(comment_prefixes="#", strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(RESOURCES / name)
    return unit


class Manager:
    """Runs a unit of ours; the test kills its processes, as the control group would be.

    ``places``: what stands for words of the unit's command; ``more``: behind them.
    """

    def __init__(
        self, base: Path, environment: dict[str, str], places: dict[str, Path],
        unit: str = UNIT, more: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.unit = unit_file(unit)["Service"]
        assert self.unit["Type"] == "notify"
        assert self.unit["NotifyAccess"] == "main"
        program, *words = shlex.split(self.unit["ExecStart"])
        assert program == "nydus-fscache"
        assert set(places) <= set(words)
        words = [str(places.get(word, word)) for word in words]
        self.command = [sys.executable, "-m", "nydus_fscache", *words, *more]
        self.environment = environment
        self.log = base / "unit.log"
        self.store: list[tuple[str, int]] = []
        self.said: list[str] = []  # every assignment but those of the store
        self.main: subprocess.Popen[bytes] | None = None
        self.strangers = 0
        self._ready = threading.Event()
        self._path = base / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(str(self._path))
        self._end = threading.Event()
        self._hearing = threading.Lock()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def start(self) -> None:
        """Returns when the unit is ready."""
        self._ready.clear()
        watchdog_us = int(self.unit.get("WatchdogSec", "0")) * 1_000_000
        variables = {
            "NOTIFY_SOCKET": str(self._path),
            "WATCHDOG_USEC": self.environment.get("WATCHDOG_USEC", str(watchdog_us)),
            "LISTEN_FDS": str(len(self.store)),
            "LISTEN_FDNAMES": ":".join(name for name, _ in self.store),
        }
        fds = [fd for _, fd in self.store]
        launcher = [sys.executable, "-I", "-S", "-c", _EXEC, ",".join(map(str, fds))]
        with self.log.open("ab") as log:
            self.main = subprocess.Popen(
                [*launcher, *self.command],
                env={**os.environ, **self.environment, **variables},
                pass_fds=fds,
                stdout=log,
                stderr=log,
            )
        assert self._ready.wait(PATIENCE_S), f"the unit is not ready\n{self.tail()}"

    def wait(self) -> int:
        """The main process's end; everything that it said has been heard then."""
        assert self.main is not None
        code = self.main.wait(PATIENCE_S)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with self._hearing:  # what was taken from the socket has been understood too
                if not select.select([self._socket], [], [], 0)[0]:
                    break
            time.sleep(0.01)
        return code

    def names(self) -> list[str]:
        return sorted(name for name, _ in self.store)

    def tail(self) -> str:
        return self.log.read_text()[-6000:] if self.log.exists() else ""

    def close(self) -> None:
        """Ends the main process, and lets go of what is stored."""
        if self.main is not None and self.main.poll() is None:
            self.main.send_signal(signal.SIGKILL)
            self.main.wait()
        self._end.set()
        self._thread.join()
        self._socket.close()
        for _, fd in self.store:
            os.close(fd)

    def _listen(self) -> None:
        while not self._end.is_set():
            if select.select([self._socket], [], [], 0.05)[0]:
                with self._hearing:
                    self._hear()

    def _hear(self) -> None:
        space = socket.CMSG_SPACE(12) + socket.CMSG_SPACE(4 * 16)
        message, ancillary, _, _ = self._socket.recvmsg(4096, space)
        pid, fds = 0, array.array("i")
        for _, kind, data in ancillary:
            if kind == socket.SCM_CREDENTIALS:
                pid = struct.unpack("iII", data)[0]
            elif kind == socket.SCM_RIGHTS:
                fds.frombytes(data)
        lines = message.decode().splitlines()
        if self.main is None or pid != self.main.pid:
            self.strangers += 1
            for fd in fds:
                os.close(fd)
            return
        name = next((line[7:] for line in lines if line.startswith("FDNAME=")), "stored")
        if "FDSTORE=1" in lines:
            assert "FDPOLL=0" in lines
            assert len(self.store) < int(self.unit["FileDescriptorStoreMax"])
            self.store += [(name, fd) for fd in fds]
        elif "FDSTOREREMOVE=1" in lines:
            for entry in [e for e in self.store if e[0] == name]:
                self.store.remove(entry)
                os.close(entry[1])
        else:
            self.said += lines
        if "READY=1" in lines:
            assert f"MAINPID={self.main.pid}" in lines
            self._ready.set()
