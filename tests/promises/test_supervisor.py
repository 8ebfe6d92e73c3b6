"""State and descriptors by way of a supervisor's socket, which keeps the first descriptor alone."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

import pytest

from nydus_fscache.errors import CacheDirError, DaemonError
from nydus_fscache.handover import supervisor, transfer
from nydus_fscache.handover.state import State
from nydus_fscache.image.binding import Binding

STATE = State(
    bindings=[
        Binding("ab" * 32, {"type": "localfs", "localfs": {"dir": f"/{n}" * 99}}, "cachefiles",
                {"fsid": f"f{n}", "domain": "d"}, "", "s")
        for n in range(400)
    ],
    numbers={"blob": 7},
    cache_limit=5,
)  # fmt: skip


class Supervisor:
    """One transfer a call, as the snapshotter does it: the listener lives as long as that."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = b""
        self.fd = -1

    def _listen(self) -> socket.socket:
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.path))
        listener.listen(1)
        listener.settimeout(20)
        return listener

    def _run(self, listener: socket.socket, *, sends: bool) -> None:
        with listener, listener.accept()[0] as connection:
            if sends:
                fds = [self.fd] if self.fd >= 0 else []
                socket.send_fds(connection, [self.data[:100]], fds)
                connection.sendall(self.data[100:])
                return
            self.data, fds, _, _ = socket.recv_fds(connection, 4096, 16)
            self.fd = fds[0] if fds else -1
            for fd in fds[1:]:
                os.close(fd)
            while part := connection.recv(4096):
                self.data += part

    def transfer(self, *, sends: bool) -> threading.Thread:
        listener = self._listen()
        thread = threading.Thread(target=self._run, args=(listener,), kwargs={"sends": sends})
        thread.start()
        return thread


def _memory(text: bytes) -> int:
    fd = os.memfd_create("test")
    os.write(fd, text)
    return fd


def test_there_and_back(tmp_path: Path) -> None:
    keeper = Supervisor(tmp_path / "s.sock")
    device, journal = _memory(b"the device"), _memory(b"the journal")
    thread = keeper.transfer(sends=False)
    supervisor.send(keeper.path, STATE, {"journal": journal, "cachefiles": device})
    thread.join()
    os.close(device)
    os.close(journal)
    assert len(keeper.data) > 2 * 32768, "more than one message"
    thread = keeper.transfer(sends=True)
    state, descriptors = supervisor.receive(keeper.path)
    thread.join()
    os.close(keeper.fd)
    assert state == STATE
    assert list(descriptors) == ["cachefiles"]
    fd = descriptors["cachefiles"]
    assert os.pread(fd, 100, 0) == b"the device"
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_nothing_to_send_is_a_connection_all_the_same(tmp_path: Path) -> None:
    keeper = Supervisor(tmp_path / "s.sock")
    thread = keeper.transfer(sends=False)
    with pytest.raises(DaemonError, match="no descriptor"):
        supervisor.send(keeper.path, STATE, {})
    thread.join()
    assert keeper.data == b""


GOOD = {"version": 1, "descriptors": ["cachefiles"], "state": STATE.document()}
BAD = {
    "nothing": b"",
    "cut": json.dumps(GOOD).encode()[:-9],
    "deep": b"[" * 200_000,
    "version": json.dumps(GOOD | {"version": 2}).encode(),
    "state-version": json.dumps(GOOD | {"state": {"version": 99}}).encode(),
    "names": json.dumps(GOOD | {"descriptors": [1]}).encode(),
    "same-names": json.dumps(GOOD | {"descriptors": ["a", "a"]}).encode(),
    "no-descriptor": json.dumps(GOOD).encode(),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_transfers_leave_nothing_open(tmp_path: Path, what: str) -> None:
    keeper = Supervisor(tmp_path / "s.sock")
    keeper.data = BAD[what]
    keeper.fd = -1 if what == "no-descriptor" else _memory(b"")
    thread = keeper.transfer(sends=True)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises((DaemonError, CacheDirError)):
        supervisor.receive(keeper.path)
    thread.join()
    assert set(os.listdir("/proc/self/fd")) <= before
    if keeper.fd >= 0:
        os.close(keeper.fd)


def test_a_supervisor_that_is_silent_or_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PATIENCE_S", 0.2)
    path = tmp_path / "s.sock"
    with pytest.raises(DaemonError, match="No such file"):
        supervisor.receive(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)
        with pytest.raises(DaemonError, match="timed out"):
            supervisor.receive(path)
