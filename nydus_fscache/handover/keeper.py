"""The keeper: holds descriptors, restarts the service, and does nothing else.

Run by start_keeper.py with ``python -I -S``; imports only what is built into the
interpreter, systemd.py and fail_pending.py, so that it stays small and hardly anything can kill
it.  It holds, by name, whatever the service sent (link.py): the fanotify
group, the event journal, the API socket, fill descriptors, /dev/cachefiles; as
the main process of a systemd unit it has systemd hold the same.  As long as it
lives, a reader whose service died waits instead of seeing zeros: the kernel
lets waiting readers through only when the last descriptor of the group closes
(reference kernel-transports 2.10).

When the service dies it is started again, with back-off.  When that has not
helped for ``NYDUS_FSCACHE_DENY_AFTER_S`` (30 s), waiting and new readers get EIO
from here, until a start succeeds; and a request that several services died over
gets EIO at that age.  A service that is not ready, and reports no progress, for
``NYDUS_FSCACHE_START_S`` (60 s) is killed.

An upgrade goes in three steps: the old service names its successor and exits; the successor
starts; once it is ready, this process becomes the keeper of the new version (exec).  A
successor that exits before it is ready is given up for the old command.

usage: keeper.py ARGV...                    start the service by this command; it finds its end
                                            of the socket in the variable NYDUS_KEEPER_FD
       keeper.py --adopt PID ARGV...        the same for a service that runs already and lost its
                                            keeper: its socket is NYDUS_KEEPER_FD, its pidfd
                                            comes as ``keep service``
       keeper.py --resume PID TABLE ARGV... after an upgrade, in the process of the old keeper;
                                            TABLE: a file of "descriptor name" lines, of all that
                                            is kept
"""

import _signal as signal  # type: ignore[import-not-found]
import _socket
import _struct as struct
import os
import select
import sys
import time

if __name__ == "__main__":  # run by path, isolated: the package is not found by itself
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from nydus_fscache.handover.fail_pending import (
    NAMES,
    fail_all,
    fail_fuse_journal,
    fail_journal,
    fuse_connections,
)
from nydus_fscache.handover.systemd import Unit

DENY_AFTER_S = float(os.environ.get("NYDUS_FSCACHE_DENY_AFTER_S") or 30)
START_S = float(os.environ.get("NYDUS_FSCACHE_START_S") or 60)
BACKOFF_S = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
QUICK_STARTS = 2  # failures that stay counted when a service became ready, and died soon after
STABLE_S = 10.0  # a service that lived so long starts the back-off anew
TAKE_OVER_S = 30.0  # a service that takes nothing from its socket for so long is stuck
EXIT_PATIENCE_MS = 10_000  # from a service's end of the socket closing to its death
SERVING = ("fanotify", "cachefiles")  # with one of these held, a reader may be waiting
SIGNALS = (signal.SIGTERM, signal.SIGINT)
LINK = "link"  # in a table: the socket to the service
STARTS = "NYDUS_FSCACHE_STARTS"  # tells the service how many there were, with itself
UPGRADE_ERROR = "NYDUS_FSCACHE_UPGRADE_ERROR"  # tells the old service why it runs again

SOL_SOCKET, SCM_RIGHTS, MESSAGE = _socket.SOL_SOCKET, _socket.SCM_RIGHTS, 4096
FD = struct.Struct("i").size


def starts() -> int:
    """In a service: how many there were, with itself."""
    return int(os.environ.get(STARTS) or 1)


def say(text: str) -> None:
    try:
        os.write(2, f"keeper[{os.getpid()}]: {text}\n".encode())
    except OSError:
        pass


class Keeper:
    def __init__(self, argv: list[str]) -> None:
        self.argv = argv
        self.unit = Unit()
        self.kept = self.unit.stored()  # descriptors by name
        self.link: _socket.socket | None = None
        self.child = 0
        self.adopted = False  # the child is another process's: no waitpid
        self.started = 0.0
        self.failures = 0
        self.down_since = 0.0
        self.next_start = 0.0
        self.stop_asked = False
        self.ready = self.ever_ready = self.bye = False
        self.successor: tuple[list[str], list[str]] | None = None  # commands: keeper, service
        self.fallback: list[str] = []  # the old service's command while the successor starts

    # -- the service -----------------------------------------------------------------------

    def start(self) -> None:
        os.environ[STARTS] = str(int(os.environ.get(STARTS) or 0) + 1)
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0)
        self.child = os.fork()
        if self.child == 0:
            os.set_inheritable(theirs.fileno(), True)
            os.environ["NYDUS_KEEPER_FD"] = str(theirs.fileno())
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            try:
                os.execv(self.argv[0], self.argv)
            finally:
                os._exit(127)
        theirs.close()
        self.link, self.started = ours, time.monotonic()
        self.adopted = self.ready = self.bye = False
        ours.settimeout(TAKE_OVER_S)
        try:
            for name, fd in self.kept.items():
                ours.sendmsg(
                    [f"have {name}".encode()],
                    [(SOL_SOCKET, SCM_RIGHTS, struct.pack("i", fd))],
                )
            if self.unit.keeps:
                ours.send(b"barriers")
            ours.send(b"end")
        except OSError as e:
            say(f"service {self.child} took nothing over: {e}")
            os.kill(self.child, signal.SIGKILL)
        ours.settimeout(None)

    def adopt(self, pid: int, fd: int) -> None:
        """Care for a service that runs already; what it holds comes as messages."""
        os.set_inheritable(fd, False)
        self.link = _socket.socket(fileno=fd)
        self.child, self.adopted, self.started = pid, True, time.monotonic()
        say(f"adopted service {pid}")

    def receive(self) -> bool:
        """One message of the service; False when its end is closed."""
        if self.link is None:
            return False
        try:
            message, ancillary, _, _ = self.link.recvmsg(MESSAGE, _socket.CMSG_SPACE(FD))
        except OSError:
            return False
        if not message:
            return False
        verb, _, name = message.decode().partition(" ")
        received = [struct.unpack("i", data[:FD])[0] for _, _, data in ancillary]
        if verb == "keep":
            self.drop(name)
            for fd in received:
                os.set_inheritable(fd, False)
                self.kept[name] = fd
                self.unit.store(name, fd)
        elif verb == "barrier":
            for fd in received:
                os.close(fd)
        elif verb == "drop":
            self.drop(name)
        elif verb == "progress":
            if not self.ready:
                self.started = time.monotonic()
        elif verb == "ready":
            self.ready = self.ever_ready = True
            self.failures = min(self.failures, QUICK_STARTS)
            self.down_since = 0.0
            self.unit.ready(f"service {self.child} serves")
            if self.stop_asked:
                self.pass_stop_on()
            if self.successor and self.fallback:
                self.become(*self.successor)
        elif verb == "upgrade":
            words = name.split("\0")
            end = words.index("")
            os.environ.pop(UPGRADE_ERROR, None)
            self.successor = (words[:end], words[end + 1 :])
        elif verb == "bye":
            self.bye = True
            self.unit.send("STOPPING=1")
        return True

    def become(self, program: list[str], service: list[str]) -> None:
        """Go on as another keeper program: the same process, child and descriptors.

        Should that program fail, the service starts another keeper, as whenever it loses one.
        """
        self.successor, self.fallback = None, []
        assert self.link is not None
        self.kept[LINK] = self.link.fileno()
        table = os.memfd_create("keeper", 0)
        os.write(table, "".join(f"{fd} {name}\n" for name, fd in self.kept.items()).encode())
        # a signal that comes meanwhile waits for the new program's handlers
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        for fd in self.kept.values():
            os.set_inheritable(fd, True)
        self.unit.give_back()
        try:
            words = [*program, "--resume", str(self.child), str(table), *service]
            os.execv(words[0], words)
        except OSError as e:
            say(f"goes on as the old keeper: {program[0]}: {e.strerror}")
        self.unit.take()
        for fd in self.kept.values():
            os.set_inheritable(fd, False)
        del self.kept[LINK]
        os.close(table)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def resume(self, pid: int, table: int) -> None:
        """Take over from the keeper that this process was."""
        for line in os.pread(table, os.fstat(table).st_size, 0).decode().splitlines():
            fd, _, name = line.partition(" ")
            self.kept[name] = int(fd)
            os.set_inheritable(int(fd), False)
        os.close(table)
        self.link = _socket.socket(fileno=self.kept.pop(LINK))
        self.child, self.adopted, self.started = pid, "service" in self.kept, time.monotonic()
        say(f"is of the new version; service {pid}")

    def drop(self, name: str) -> None:
        fd = self.kept.pop(name, None)
        if fd is not None:
            self.unit.remove(name)
            os.close(fd)

    def pass_stop_on(self) -> None:
        """To a service that can unmount; one that is only starting gets it when it is ready."""
        if self.ready or not self.serving():
            os.kill(self.child, signal.SIGTERM)
        # a service that is ready may refuse; the end of one that is not is the end
        self.stop_asked = not self.ready

    def serving(self) -> bool:
        return any(name in self.kept for name in SERVING) or bool(fuse_connections(self.kept))

    def buried(self) -> int:
        """Wait for the dead service; returns its exit status as a shell shows it."""
        while self.receive():  # what it said before it died still counts
            pass
        if self.link is not None:
            self.link.close()
            self.link = None
        pid, self.child = self.child, 0
        if self.adopted:
            if "service" in self.kept:
                gone = select.poll()
                gone.register(self.kept["service"], select.POLLIN)
                if not gone.poll(EXIT_PATIENCE_MS):
                    signal.pidfd_send_signal(self.kept["service"], signal.SIGKILL)
                    gone.poll(EXIT_PATIENCE_MS)
                self.drop("service")
            return 0 if self.bye else 255
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    # -- when nobody serves -------------------------------------------------------------------

    def fail_pending(self) -> int:
        """EIO for everything that waits."""
        if NAMES in self.kept:
            self.drop(NAMES)
            say(f"no service for {DENY_AFTER_S:.0f} s: the layer store's connection is closed")
        held = set(self.kept)
        failed = fail_all(self.kept)
        for name in held - set(self.kept):
            self.unit.remove(name)
        return failed

    # -- the loop -------------------------------------------------------------------------------

    def run(self) -> int:
        wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        if not self.child:
            self.start()
        while True:
            poll = select.poll()
            poll.register(wake_r, select.POLLIN)
            if self.link is not None:
                poll.register(self.link.fileno(), select.POLLIN)
            ready = dict(poll.poll(self.patience_ms()))
            if wake_r in ready:
                os.read(wake_r, 64)
                self.stop_asked = True
                if self.child:
                    self.pass_stop_on()
            if self.link is not None and self.link.fileno() in ready:
                if not self.receive():
                    code = self.buried()
                    if self.over(code):
                        for name in self.kept:  # open until the end: a free lock says: it is over
                            self.unit.remove(name)
                        return code
            # only once all that it has said is read: this process may have slept itself
            elif self.starting() and time.monotonic() - self.started > START_S:
                say(f"service {self.child} was not ready, and made no progress, in {START_S:.0f} s")
                os.kill(self.child, signal.SIGKILL)
            if not self.child:
                overdue = time.monotonic() - self.down_since > DENY_AFTER_S
                if overdue and (count := self.fail_pending()):
                    say(f"no service for {DENY_AFTER_S:.0f} s: {count} readers got EIO")
                if time.monotonic() >= self.next_start:
                    self.start()

    def starting(self) -> bool:
        return bool(self.child) and not self.ready

    def patience_ms(self) -> int | None:
        sign_of_life = self.unit.alive_for_ms()
        if self.child and self.ready:
            return sign_of_life
        until = self.started + START_S if self.child else self.next_start
        patience = max(1, min(1000, int((until - time.monotonic()) * 1000) + 1))
        return patience if sign_of_life is None else min(patience, sign_of_life)

    def over(self, code: int) -> bool:
        """The service is gone with ``code``: is that the end, or when to start it again?"""
        if self.bye and code == 0:
            return True
        if not self.serving() and (self.stop_asked or (not self.ever_ready and 1 <= code <= 9)):
            return True  # nobody waits, and it never got so far as to serve, and said why
        now = time.monotonic()
        self.down_since = self.down_since or now
        if self.changed_version(code):
            self.next_start = now
            return False
        if self.ready and now - self.started > STABLE_S:
            self.failures = 0
        self.next_start = now + BACKOFF_S[min(self.failures, len(BACKOFF_S) - 1)]
        self.failures += 1
        if "journal" in self.kept:
            journal, old = self.kept["journal"], 0
            if "fanotify" in self.kept:
                old += fail_journal(self.kept["fanotify"], journal, DENY_AFTER_S)
            old += fail_fuse_journal(fuse_connections(self.kept), journal, DENY_AFTER_S)
            if old:
                say(f"{old} requests got EIO: older than {DENY_AFTER_S:.0f} s, services died over")
        wait = self.next_start - now
        text = f"service exited with {code}; start {self.failures} in {wait:.1f} s"
        self.unit.send(f"STATUS={text}")
        say(text)
        return False

    def changed_version(self, code: int) -> bool:
        """Has the command changed, since the old service made way or its successor failed?"""
        if self.successor is None:
            return False
        if not self.fallback:
            self.fallback, self.argv = self.argv, self.successor[1]
            say(f"service exited with {code} for its successor {self.argv[0]}")
        else:
            self.successor, self.argv, self.fallback = None, self.fallback, []
            os.environ[UPGRADE_ERROR] = f"the successor exited with {code} before it was ready"
            say(f"{os.environ[UPGRADE_ERROR]}: back to {self.argv[0]}")
        return True


def main(words: list[str]) -> int:
    mode = words[0] if words[0] in {"--adopt", "--resume"} else ""
    keeper = Keeper(words[{"": 0, "--adopt": 2, "--resume": 3}[mode] :])
    keeper.ever_ready = keeper.ready = bool(mode)
    if mode == "--adopt":
        keeper.adopt(int(words[1]), int(os.environ.pop("NYDUS_KEEPER_FD")))
    elif mode == "--resume":
        keeper.resume(int(words[1]), int(words[2]))
    return keeper.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
