"""The keeper: holds descriptors, restarts the service, and does nothing else.

Run by path with ``python -I -S``; imports only what is built into the
interpreter, so that it stays small and hardly anything can kill it.  It holds,
by name, whatever the service sent (handover.py): the fanotify group, the event
journal, the API socket, fill descriptors, /dev/cachefiles.  As long as it
lives, a reader whose service died waits instead of seeing zeros: the kernel
lets waiting readers through only when the last descriptor of the group closes
(reference kernel-transports 2.10).

When the service dies it is started again, with back-off.  When that has not
helped for ``DENY_AFTER_S``, waiting and new readers get EIO from here, until a
start succeeds.

usage: keeper.py ARGV...      the command that starts the service; it finds its end of the
                              socket in the environment variable NYDUS_KEEPER_FD
"""

import _signal as signal  # type: ignore[import-not-found]
import _socket
import _struct as struct
import errno
import os
import select
import sys
import time

import mmap  # isort: skip

DENY_AFTER_S = 30.0
BACKOFF_S = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
STABLE_S = 10.0  # a service that lived so long starts the back-off anew

SOL_SOCKET, SCM_RIGHTS, MESSAGE = _socket.SOL_SOCKET, _socket.SCM_RIGHTS, 512
FAN_DENY_EIO = 0x02 | errno.EIO << 24
FD = struct.Struct("i").size
JOURNAL_HEADER = struct.Struct("=QIIQQ")  # csrc/journal.h
JOURNAL_MAGIC, JOURNAL_VERSION, EVENT_SIZE = 0x4C4E524A5346594E, 1, 48


def say(text: str) -> None:
    try:
        os.write(2, f"keeper[{os.getpid()}]: {text}\n".encode())
    except OSError:
        pass


class Keeper:
    def __init__(self, argv: list[str]) -> None:
        self.argv = argv
        self.kept: dict[str, int] = {}  # descriptors by name
        self.link: _socket.socket | None = None
        self.child = 0
        self.started = 0.0
        self.failures = 0
        self.down_since = 0.0
        self.next_start = 0.0
        self.stopping = False
        self.bye = False
        self.served = False  # a service of ours was ready once

    # -- the service -----------------------------------------------------------------------

    def start(self) -> None:
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0)
        self.child = os.fork()
        if self.child == 0:
            os.set_inheritable(theirs.fileno(), True)
            os.environ["NYDUS_KEEPER_FD"] = str(theirs.fileno())
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            try:
                os.execv(self.argv[0], self.argv)
            finally:
                os._exit(127)
        theirs.close()
        self.link, self.started, self.bye = ours, time.monotonic(), False
        try:
            for name, fd in self.kept.items():
                ours.sendmsg(
                    [f"have {name}".encode()],
                    [(SOL_SOCKET, SCM_RIGHTS, struct.pack("i", fd))],
                )
            ours.send(b"end")
        except OSError as e:
            say(f"service {self.child} took nothing over: {e}")

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
        if verb == "keep":
            self.drop(name)
            for _, _, data in ancillary:
                (self.kept[name],) = struct.unpack("i", data[:FD])
                os.set_inheritable(self.kept[name], False)
        elif verb == "drop":
            self.drop(name)
        elif verb == "ready":
            self.served, self.failures, self.down_since = True, 0, 0.0
        elif verb == "bye":
            self.bye = True
        return True

    def drop(self, name: str) -> None:
        fd = self.kept.pop(name, None)
        if fd is not None:
            os.close(fd)

    def buried(self) -> int:
        """Wait for the dead service; returns its exit status as a shell shows it."""
        while self.receive():  # what it said before it died still counts
            pass
        if self.link is not None:
            self.link.close()
            self.link = None
        _, status = os.waitpid(self.child, 0)
        self.child = 0
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    # -- when nobody serves -------------------------------------------------------------------

    def deny(self) -> int:
        """Answer everything that waits with EIO: first what the service had read, then the queue.

        The order matters: answers are matched by number, and an event that we read
        could get a number that a journalled one still has.
        """
        group, journal = self.kept.get("fanotify"), self.kept.get("journal")
        if group is None:
            return 0
        denied = 0
        if journal is not None:
            denied += deny_journal(group, journal)
        while True:
            try:
                events = os.read(group, 4096)
            except OSError:
                return denied
            at = 0
            while at + 24 <= len(events):
                length, _, _, _, _, fd, _ = struct.unpack_from("=IBBHQii", events, at)
                if fd >= 0:
                    answer(group, fd)
                    os.close(fd)
                    denied += 1
                at += max(length, 24)

    # -- the loop -------------------------------------------------------------------------------

    def run(self) -> int:
        wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self.start()
        while True:
            poll = select.poll()
            poll.register(wake_r, select.POLLIN)
            if self.link is not None:
                poll.register(self.link.fileno(), select.POLLIN)
            ready = dict(poll.poll(self.patience_ms()))
            if wake_r in ready:
                self.stopping = bool(os.read(wake_r, 64)) or self.stopping
                if self.child:
                    os.kill(self.child, signal.SIGTERM)
            if self.link is not None and self.link.fileno() in ready and not self.receive():
                code = self.buried()
                if self.over(code):
                    return code
            if not self.child:
                if self.stopping:
                    return 1
                if time.monotonic() - self.down_since > DENY_AFTER_S and (count := self.deny()):
                    say(f"no service for {DENY_AFTER_S:.0f} s: {count} readers got EIO")
                if time.monotonic() >= self.next_start:
                    self.start()

    def patience_ms(self) -> int | None:
        if self.child:
            return None
        return max(0, min(1000, int((self.next_start - time.monotonic()) * 1000) + 1))

    def over(self, code: int) -> bool:
        """The service is gone with ``code``: is that the end, or when to start it again?"""
        if (self.bye or self.stopping) and code == 0:
            return True
        if not self.served and 1 <= code <= 9:
            return True  # it never got so far as to serve anything, and said why
        now = time.monotonic()
        if now - self.started > STABLE_S:
            self.failures, self.down_since = 0, 0.0
        self.down_since = self.down_since or now
        self.next_start = now + BACKOFF_S[min(self.failures, len(BACKOFF_S) - 1)]
        self.failures += 1
        say(f"service exited with {code}; start {self.failures} in {self.next_start - now:.1f} s")
        return False


def answer(group: int, fd: int) -> None:
    """EIO for the reader of event ``fd``; one that is gone already does no harm."""
    try:
        os.write(group, struct.pack("=iI", fd, FAN_DENY_EIO))
    except OSError:
        pass


def deny_journal(group: int, journal: int) -> int:
    """Layout: csrc/journal.h.  A slot is taken when the length of its event is not 0."""
    size = os.fstat(journal).st_size
    if not size:
        return 0
    denied = 0
    with mmap.mmap(journal, size) as memory:
        for at in journal_slots(memory):
            (length,) = struct.unpack_from("=I", memory, at)
            if length:
                answer(group, struct.unpack_from("=i", memory, at + 16)[0])
                memory[at : at + 4] = bytes(4)
                denied += 1
    return denied


def journal_slots(memory: mmap.mmap) -> range:
    """Offsets of the event records; none when the journal is of a version that is not ours."""
    if len(memory) < JOURNAL_HEADER.size:
        return range(0)
    magic, version, slots, events_off, _ = JOURNAL_HEADER.unpack_from(memory, 0)
    end = events_off + slots * EVENT_SIZE
    if (magic, version) != (JOURNAL_MAGIC, JOURNAL_VERSION) or end > len(memory):
        say(f"journal of version {version} cannot be read")
        return range(0)
    return range(events_off, end, EVENT_SIZE)


if __name__ == "__main__":
    sys.exit(Keeper(sys.argv[1:]).run())
