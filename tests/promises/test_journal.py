"""The journal of a predecessor: believed only as far as it fits, and never answered with holes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nydus_fscache.cache.presence import PageMap
from nydus_fscache.core.core import Core
from nydus_fscache.handover import fail_pending
from nydus_fscache.handover.link import Handover

SLOTS = 8
FAN_ALLOW, FAN_DENY_EIO = 1, 2 | errno.EIO << 24
EVENT = struct.Struct("=IBBHQii BBHIQQ")


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    version=st.sampled_from([0, 2, fail_pending.JOURNAL_VERSION]),
    nareas=st.sampled_from([0, 1, 2, 8, 9, 2**32 - 1]),
    areas=st.lists(
        st.tuples(
            st.sampled_from([0, 1, 2, 3]),
            st.sampled_from([0, 1, 40, 48, 1024, 2**31, 2**32 - 1]),
            *[st.sampled_from([0, 1, 3, 8, 2**31, 2**32 - 1])] * 2,
            *[st.sampled_from([0, 39, 64, 448, 4096, 4480, 8192, 2**63, 2**64 - 1])] * 2,
        ),
        max_size=8,
    ),
    body=st.binary(max_size=600),
)
def test_a_damaged_one_is_not_believed(
    version: int, nareas: int, areas: list[tuple[int, ...]], body: bytes
) -> None:
    with mmap.mmap(-1, 16384) as memory:
        memory[: len(body)] = body
        fail_pending.JOURNAL.pack_into(memory, 0, fail_pending.JOURNAL_MAGIC, version, nareas)
        for i, area in enumerate(areas):
            fail_pending.AREA.pack_into(memory, 16 + i * fail_pending.AREA.size, *area)
        for at, meta in fail_pending.journal_slots(memory):
            assert 0 <= at <= len(memory) - fail_pending.EVENT_SIZE
            assert 0 <= meta <= len(memory) - fail_pending.META.size
        assert all(isinstance(number, int) for number in fail_pending.owed(memory))
        for at in fail_pending.message_slots(memory):
            assert 0 <= at <= len(memory) - fail_pending.MESSAGE_SIZE
        with contextlib.suppress(OSError):  # refused, and nothing worse
            Core(memory)


def test_one_that_was_only_begun_holds_nothing() -> None:
    journal = os.memfd_create("journal")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        for device in ("fanotify", "cachefiles"):
            assert fail_pending.fail_all({device: ours.fileno(), "journal": journal}) == 0
    os.close(journal)


@pytest.fixture
def journal() -> mmap.mmap:
    memory = mmap.mmap(-1, Core.journal_size(SLOTS))
    Core.format_journal(memory, SLOTS)
    return memory


def record(memory: mmap.mmap, slot: int, number: int, off: int, oid: int, kind: int = 6) -> None:
    """An event that a predecessor had read and not answered; ``oid`` 0: not looked up yet."""
    at, meta = fail_pending.journal_slots(memory)[slot]
    EVENT.pack_into(memory, at, 48, 3, 0, 24, 0x100000, number, 1, kind, 0, 24, 0, off, 4096)
    fail_pending.META.pack_into(memory, meta, 0, oid, 0)


@pytest.mark.parametrize("all_served", [True, False])
def test_what_cannot_be_told_is_an_error(journal: mmap.mmap, all_served: bool) -> None:
    """An event whose file nobody had looked up may be of an image that is not served again."""
    # free numbers, above all that other tests have open: where the events' descriptors would be
    spare = fcntl.fcntl(0, fcntl.F_DUPFD, 500)
    os.close(spare)
    record(journal, 0, spare, 0, 0)
    record(journal, 1, spare + 1, 0, 7)  # of an object that is gone
    record(journal, 2, spare + 2, 1 << 30, 0)  # behind the end of all that is served
    record(journal, 3, spare + 3, 0, 0, kind=9)  # without a range
    record(journal, 4, spare + 4, 0, 5)
    core = Core(journal)
    group, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pages = PageMap(8192)
    pages.set(0, 2)
    with group, ours:
        ours.setblocking(False)
        core.add_object(5, 1, 1, ours.fileno(), 8192, pages.memory)
        core.attach_fanotify(ours.fileno())
        assert core.settle(all_served=all_served) == 5
        group.settimeout(20)
        answers = dict(struct.unpack("=iI", group.recv(8)) for _ in range(5))
    unknown = FAN_ALLOW if all_served else FAN_DENY_EIO  # all that it can be of is there
    wanted = [unknown, FAN_DENY_EIO, FAN_DENY_EIO, FAN_DENY_EIO, FAN_ALLOW]
    assert answers == {spare + i: answer for i, answer in enumerate(wanted)}
    core.remove_object(5)
    pages.close()


def test_numbers_that_are_owed_an_answer_are_given_up() -> None:
    """The keeper's socket and what it hands over may have the number of an event: closed later,
    the number could go to a new event, and its answer to the old reader."""
    journal = os.memfd_create("journal")
    os.ftruncate(journal, Core.journal_size(SLOTS))
    ours, keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mmap.mmap(journal, 0) as memory, keeper:
        Core.format_journal(memory, SLOTS)
        here = ours.detach()
        there = os.dup(0)  # the number that the journal will have in this process
        os.close(there)
        record(memory, 0, here, 0, 7)
        record(memory, 1, there, 0, 7)
        socket.send_fds(keeper, [b"have journal"], [journal])
        keeper.send(b"end")
        link = Handover(here)
        owed = {here, there}
        assert link.inherited.keys() == {"journal"}
        assert not owed & {link.inherited["journal"], link._socket.fileno()}
        for number in owed:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(number)
        link.keep("x", journal)  # it is heard still
        assert keeper.recv(64) == b"keep x"
        os.close(link.inherited["journal"])
        link._socket.close()
    os.close(journal)


def test_the_number_that_the_memory_itself_has_is_safe() -> None:
    """mmap keeps a descriptor of the journal, whose number may be owed: that reader is served."""
    fd = os.memfd_create("journal")
    os.ftruncate(fd, Core.journal_size(SLOTS))
    number = os.dup(0)
    os.close(number)  # the lowest that is free, which mmap takes
    memory = mmap.mmap(fd, 0)
    Core.format_journal(memory, SLOTS)
    record(memory, 0, number, 0, 5)
    core = Core(memory)
    group, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pages = PageMap(8192)
    pages.set(0, 2)
    with group, ours:
        core.add_object(5, 1, 1, ours.fileno(), 8192, pages.memory)
        core.attach_fanotify(ours.fileno())
        assert core.settle(all_served=True) == 1
        group.settimeout(20)
        assert struct.unpack("=iI", group.recv(8)) == (number, FAN_ALLOW)
    os.fstat(number)
    core.remove_object(5)
    pages.close()
    os.close(fd)


def test_a_number_that_cannot_be_kept_is_answered_at_once(journal: mmap.mmap) -> None:
    """Something of this process has it, and may close it any time: that reader gets EIO now."""
    number = os.open("/dev/null", os.O_RDONLY)
    record(journal, 0, number, 0, 5)
    core = Core(journal)
    group, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pages = PageMap(8192)
    with group, ours:
        core.add_object(5, 1, 1, ours.fileno(), 8192, pages.memory)
        core.attach_fanotify(ours.fileno())
        assert core.settle(all_served=True) == 1
        group.settimeout(20)
        assert struct.unpack("=iI", group.recv(8)) == (number, FAN_DENY_EIO)
    os.fstat(number)  # it is not ours to close
    os.close(number)
    core.remove_object(5)
    pages.close()
