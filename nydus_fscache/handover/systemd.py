"""What systemd does for the keeper: it holds the same descriptors, under the same names.

Then even keeper *and* service may be killed at once: the fanotify group stays
open, readers wait, and the unit's next start takes everything back.  Imports
only what is built into the interpreter, as the keeper does.

Source: sd_notify(3), sd_listen_fds(3), systemd.service(5) FileDescriptorStoreMax=.
systemd reads what the main process sent before it sees that process die, so what
``send`` has returned from is not lost by a kill.
"""

import _socket
import _struct as struct
import os
import time

FIRST_FD = 3  # SD_LISTEN_FDS_START
SEND_PATIENCE_S = 5.0


class Unit:
    """The unit that this process is the main process of; without systemd every call does nothing.

    The environment is cleared of systemd's variables, for they are not the service's.
    """

    def __init__(self) -> None:
        self._taken: dict[str, str] = {}
        taken = self.take()
        address = taken["NOTIFY_SOCKET"]
        self._socket: _socket.socket | None = None
        if address[:1] in ("/", "@"):
            self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
            self._socket.settimeout(SEND_PATIENCE_S)
            self._address = address if address[0] == "/" else "\0" + address[1:]
        self._watchdog_s = 0.0  # between two signs of life; 0: none is wanted
        if taken["WATCHDOG_PID"] in ("", str(os.getpid())):
            self._watchdog_s = (_number(taken["WATCHDOG_USEC"]) or 0) / 2e6
        self._next_sign = time.monotonic()
        self._count = _number(taken["LISTEN_FDS"]) if _is_ours(taken["LISTEN_PID"]) else 0
        self._names = taken["LISTEN_FDNAMES"].split(":")
        self._limit = _number(taken["FDSTORE"])  # systemd 254 and later; 0: not known
        self._in_store: set[str] = set()
        self._is_told = False

    def take(self) -> dict[str, str]:
        self._taken = {name: os.environ.pop(name, "") for name in _VARIABLES}
        return self._taken

    def give_back(self) -> None:
        """The variables, before another program goes on in this process; not what is stored."""
        for name in ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "FDSTORE"):
            if self._taken[name]:
                os.environ[name] = self._taken[name]

    @property
    def keeps(self) -> bool:
        return self._socket is not None

    def stored(self) -> dict[str, int]:
        """The descriptors by name that the store gives back; to be called once."""
        found: dict[str, int] = {}
        for at in range(self._count):
            fd = FIRST_FD + at
            try:
                os.set_inheritable(fd, False)
            except OSError:
                continue
            name = self._names[at] if at < len(self._names) else ""
            if name and name not in found:
                found[name] = fd
                self._in_store.add(name)
            else:
                os.close(fd)
        return found

    def store(self, name: str, fd: int) -> None:
        # FDPOLL=0: a store that polls drops what reports a hang-up
        self.send(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", fd)
        self._in_store.add(name)
        if self._limit and len(self._in_store) > self._limit and not self._is_told:
            self._is_told = True
            _say(f"more than {self._limit} descriptors: raise FileDescriptorStoreMax=")

    def remove(self, name: str) -> None:
        self.send(f"FDSTOREREMOVE=1\nFDNAME={name}")
        self._in_store.discard(name)

    def ready(self, status: str) -> None:
        self.send(f"READY=1\nMAINPID={os.getpid()}\nSTATUS={status}")

    def alive_for_ms(self) -> int | None:
        """Give a sign of life when it is due; returns when the next one is (None: never)."""
        if not self._watchdog_s:
            return None
        now = time.monotonic()
        if now >= self._next_sign:
            self.send("WATCHDOG=1")
            self._next_sign = now + self._watchdog_s
        return int((self._next_sign - now) * 1000) + 1

    def send(self, text: str, fd: int | None = None) -> None:
        """A manager that does not listen is no reason to let a reader down."""
        if self._socket is None:
            return
        ancillary = []
        if fd is not None:
            ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", fd))]
        try:
            self._socket.sendmsg([text.encode()], ancillary, 0, self._address)
        except OSError as e:
            _say(f"systemd does not hear: {e}")


def _say(text: str) -> None:
    try:
        os.write(2, f"keeper[{os.getpid()}]: {text}\n".encode())
    except OSError:
        pass


_VARIABLES = (
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
    "FDSTORE",
)


def _is_ours(pid: str) -> bool:
    return pid == str(os.getpid())


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 18 else 0
