"""The service's end of the keeper."""

from __future__ import annotations

import mmap
import os
import socket
import struct

from nydus_fscache.core.journal import journal_memory
from nydus_fscache.handover import fail_pending
from nydus_fscache.handover.link import Handover


def test_no_descriptor_has_a_number_that_an_answer_is_owed_for() -> None:
    """Not even the socket to the keeper, which is closed when the keeper is lost: a new event
    with its number would get the answer that is meant for the old one."""
    keeper, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keeper.send(b"end")
    first = Handover(ours.detach())
    journal_memory(first)
    journal = first._held["journal"]
    memory = mmap.mmap(journal, 0)
    keeper2, ours2 = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    number = ours2.detach()
    at, _ = fail_pending.journal_slots(memory)[0]
    struct.pack_into("=IBBHQii", memory, at, 24, 0, 0, 24, 0, number, 0)
    socket.send_fds(keeper2, [b"have journal"], [journal])
    keeper2.send(b"end")
    with mmap.mmap(journal, 0, prot=mmap.PROT_READ) as seen:
        assert fail_pending.owed(seen) == {number}
    second = Handover(number)
    assert second._socket.fileno() > number
    assert all(fd > number for fd in second.inherited.values())
    second.ready()
    assert keeper2.recv(512) == b"ready"
    for one in (second, first):
        one._socket.close()
    os.close(second.inherited["journal"])
    os.close(journal)
    keeper.close()
    keeper2.close()


def test_the_journal_takes_no_number_that_an_answer_is_owed_for() -> None:
    """Its reader would get EIO: the core cannot keep the number from new events."""
    keeper, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keeper.send(b"end")
    link = Handover(ours.detach())
    memory = journal_memory(link)
    inode = os.fstat(link._held["journal"]).st_ino
    copies = [f for f in map(int, os.listdir("/proc/self/fd")) if is_open_on(f, inode)]
    assert copies == [link._held["journal"]]
    assert bytes(memory[:8]) == b"NYFSJRNL"
    os.close(link._held["journal"])
    link._socket.close()
    keeper.close()


def is_open_on(fd: int, inode: int) -> bool:
    try:
        return os.fstat(fd).st_ino == inode
    except OSError:
        return False
