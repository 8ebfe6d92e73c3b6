"""The service's end of the keeper."""

from __future__ import annotations

import mmap
import os
import socket
import struct

from nydus_fscache.core.core import Core
from nydus_fscache.core.journal import journal_memory
from nydus_fscache.handover import fail_pending
from nydus_fscache.handover.link import Handover


def test_no_descriptor_has_a_number_that_an_answer_is_owed_for() -> None:
    """Not even the socket to the keeper, which is closed when the keeper is lost: a new event
    with its number would get the answer that is meant for the old one."""
    keeper, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    keeper.send(b"end")
    first = Handover(ours.detach())
    memory = journal_memory(first)
    Core(memory)
    journal = first._held["journal"]
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
