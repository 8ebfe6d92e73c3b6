"""EIO for the readers that nobody serves: what the keeper answers in the service's place.

Imports only what is built into the interpreter, as the keeper does.  The journal
(csrc/core/journal.h) was written by another process, maybe of another version: nothing in it is
believed that does not fit the memory.  It comes first, the queue behind it: fanotify's answers are
matched by number, and an event that is read now could get a number that a journalled one has.
"""

import _struct as struct
import errno
import fcntl
import os
import time

import mmap  # isort: skip

FAN_DENY_EIO = 0x02 | errno.EIO << 24
QUEUE = 4096  # bytes that one read of the fanotify group takes at most

# csrc/core/journal.h: header, one of its areas (kind, record_size, slots, used, records_off,
# meta_off), a record of fanotify (fanotify_event_metadata and range), a meta record
JOURNAL = struct.Struct("=QII")
JOURNAL_MAGIC, JOURNAL_VERSION = 0x4C4E524A5346594E, 3
AREAS, AREA, FIRST_AREA = 8, struct.Struct("=IIIIQQ"), 4096
AREA_FANOTIFY, AREA_CACHEFILES, AREA_FUSE = 1, 2, 4
EVENT_SIZE, META = 48, struct.Struct("=QII")

# cachefiles (reference kernel-transports 1.3): head of a message, and of what an OPEN adds
MESSAGE, MESSAGE_SIZE, OPEN = struct.Struct("=IIII"), 1024, struct.Struct("=IIII")
OP_OPEN, OP_CLOSE, OP_READ = 0, 1, 2
READ_COMPLETE = 0x40049801

# fuse: a descriptor is kept as this and the connection's number; struct nf_fuse_record
# (csrc/core/fuse.h) is the head of a message and at its end the connection's number; fuse_in_header
# begins with len, opcode and unique, and fuse_out_header is len, error and unique
FUSE, FUSE_RECORD, FUSE_CONNECTION = "fuse.", 320, 312
FUSE_IN, FUSE_OUT, FUSE_BUFFER = struct.Struct("=IIQ"), struct.Struct("=IiQ"), 8192
FUSE_READ = 15
FUSE_SILENT = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET: no answer is expected

# the connection of a layer store (runtimes/store): engines that ask it go on without an answer, and
# wait for one as long as it is held
NAMES = "names"

MESSAGES_AT_ONCE = 1000  # an OPEN that is refused may come again, without end


def answer(group: int, fd: int) -> None:
    """EIO for the reader of event ``fd``; one that is gone already does no harm."""
    try:
        os.write(group, struct.pack("=iI", fd, FAN_DENY_EIO))
    except OSError:
        pass


def fail_all(kept: dict[str, int]) -> int:
    """Everything that waits, by what the keeper holds; returns how many.

    Of cachefiles objects that the kernel has closed the descriptors are dropped from ``kept``.
    """
    group, device, journal = kept.get("fanotify"), kept.get("cachefiles"), kept.get("journal")
    failed = 0
    if group is not None:
        failed += fail_journal(group, journal, 0.0) if journal is not None else 0
        failed += _fail_queue(group)
    if device is not None:
        failed += _fail_messages(device, kept, journal) if journal is not None else 0
        failed += _fail_device(device, kept)
    if connections := fuse_connections(kept):
        failed += fail_fuse_journal(connections, journal, 0.0) if journal is not None else 0
        for fd in connections.values():
            failed += _fail_fuse_queue(fd)
    return failed


def _open_slots(
    memory: mmap.mmap, slots: list[tuple[int, int]], age_s: float
) -> list[tuple[int, int]]:
    """Those that are open since ``age_s`` or longer (0: all that are open)."""
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - int(age_s * 1e9)
    found = []
    for at, meta in slots:
        (length,) = struct.unpack_from("=I", memory, at)
        since, known, _ = META.unpack_from(memory, meta)
        if length and (not age_s or (known and since < before)):
            found.append((at, meta))
    return found


def _close(memory: mmap.mmap, at: int, meta: int) -> None:
    memory[meta + 8 : meta + 12] = bytes(4)
    memory[at : at + 4] = bytes(4)


# -- fuse -------------------------------------------------------------------------------------


def fuse_connections(kept: dict[str, int]) -> dict[int, int]:
    """Descriptors by the number of their connection."""
    found: dict[int, int] = {}
    for name, fd in kept.items():
        number = name[len(FUSE) :]
        if name.startswith(FUSE) and number.isdigit():
            found[int(number)] = fd
    return found


def fail_fuse_journal(connections: dict[int, int], journal: int, age_s: float) -> int:
    """READs that are open in the journal since ``age_s`` or longer (0: everything)."""
    failed = 0
    with _mapped(journal) as memory:
        for at, meta in _open_slots(memory, fuse_slots(memory), age_s):
            _, opcode, unique = FUSE_IN.unpack_from(memory, at)
            (number,) = struct.unpack_from("=I", memory, at + FUSE_CONNECTION)
            if number in connections:
                failed += _fail_fuse(connections[number], opcode, unique)
            _close(memory, at, meta)
    return failed


def fuse_slots(memory: mmap.mmap) -> list[tuple[int, int]]:
    """(record, meta record) offsets of FUSE's slots that were ever used; none when the layout is
    not ours."""
    area = _area(memory, AREA_FUSE, FUSE_RECORD)
    if area is None:
        return []
    _, used, start, meta = area
    return [(start + i * FUSE_RECORD, meta + i * META.size) for i in range(used)]


def _fail_fuse_queue(connection: int) -> int:
    failed = 0
    for _ in range(MESSAGES_AT_ONCE):
        try:
            message = os.read(connection, FUSE_BUFFER)
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.EINTR):  # its reader was killed: there may be others
                continue
            break
        if len(message) < FUSE_IN.size:
            break
        _, opcode, unique = FUSE_IN.unpack_from(message)
        failed += _fail_fuse(connection, opcode, unique)
    return failed


def _fail_fuse(connection: int, opcode: int, unique: int) -> bool:
    """Is there a reader who got EIO?  One that is answered already does no harm."""
    if opcode not in FUSE_SILENT:
        try:
            os.write(connection, FUSE_OUT.pack(FUSE_OUT.size, -errno.EIO, unique))
        except OSError:
            pass
    return opcode == FUSE_READ


# -- fanotify ---------------------------------------------------------------------------------


def fail_journal(group: int, journal: int, age_s: float) -> int:
    """What is open in the journal since ``age_s`` or longer (0: everything)."""
    failed = 0
    with _mapped(journal) as memory:
        for at, meta in _open_slots(memory, journal_slots(memory), age_s):
            answer(group, struct.unpack_from("=i", memory, at + 16)[0])
            _close(memory, at, meta)
            failed += 1
    return failed


def _fail_queue(group: int) -> int:
    failed = 0
    while True:
        try:
            events = os.read(group, QUEUE)
        except OSError:
            return failed
        at = 0
        while at + 24 <= len(events):
            length, _, _, _, _, fd, _ = struct.unpack_from("=IBBHQii", events, at)
            if fd >= 0:
                answer(group, fd)
                os.close(fd)
                failed += 1
            at += max(length, 24)


def journal_slots(memory: mmap.mmap) -> list[tuple[int, int]]:
    """(event record, meta record) offsets of all slots; none when the layout is not ours."""
    area = _area(memory, AREA_FANOTIFY, EVENT_SIZE)
    if area is None:
        return []
    slots, _, start, meta = area
    return [(start + i * EVENT_SIZE, meta + i * META.size) for i in range(slots)]


def _mapped(journal: int) -> mmap.mmap:
    """All of it; nothing is in one that its service had only begun."""
    size = os.fstat(journal).st_size
    return mmap.mmap(journal, size) if size else mmap.mmap(-1, FIRST_AREA)


def _area(memory: mmap.mmap, kind: int, size: int) -> tuple[int, int, int, int] | None:
    """(slots, slots that were ever used, where the records begin, and their meta records) of an
    area of the journal; None when the layout is not ours."""
    if len(memory) < FIRST_AREA:
        return None
    magic, version, areas = JOURNAL.unpack_from(memory, 0)
    if (magic, version) != (JOURNAL_MAGIC, JOURNAL_VERSION) or areas > AREAS:
        return None
    for i in range(areas):
        at = JOURNAL.size + i * AREA.size
        its_kind, record, slots, used, start, meta = AREA.unpack_from(memory, at)
        if its_kind != kind:
            continue
        ends = (start + slots * size, meta + slots * META.size)
        fits = start >= FIRST_AREA and ends[0] <= meta and max(ends) <= len(memory)
        return (slots, used, start, meta) if record == size and used <= slots and fits else None
    return None


def owed(memory: mmap.mmap) -> set[int]:
    """The descriptor numbers of fanotify events that are not answered."""
    return {
        struct.unpack_from("=i", memory, at + 16)[0]
        for at, _ in journal_slots(memory)
        if struct.unpack_from("=I", memory, at)[0]
    }


# -- cachefiles -------------------------------------------------------------------------------


def _fail_messages(device: int, kept: dict[str, int], journal: int) -> int:
    """What the service had read; CLOSEs stay on record for the successor."""
    failed = 0
    with _mapped(journal) as memory:
        for at in message_slots(memory):
            msg_id, opcode, length, number = MESSAGE.unpack_from(memory, at)
            if length and opcode != OP_CLOSE and _fail(device, kept, msg_id, opcode, number):
                memory[at + 8 : at + 12] = bytes(4)
                failed += 1
    return failed


def message_slots(memory: mmap.mmap) -> list[int]:
    """The offsets of cachefiles messages; none when the layout is not ours."""
    area = _area(memory, AREA_CACHEFILES, MESSAGE_SIZE)
    if area is None:
        return []
    _, used, start, _ = area
    return [start + i * MESSAGE_SIZE for i in range(used)]


def _fail_device(device: int, kept: dict[str, int]) -> int:
    failed = 0
    for _ in range(MESSAGES_AT_ONCE):
        try:
            message = os.read(device, MESSAGE_SIZE)
        except OSError:
            break
        if len(message) < MESSAGE.size:  # nothing is pending
            break
        msg_id, opcode, _, number = MESSAGE.unpack_from(message)
        if opcode == OP_CLOSE:
            fd = kept.pop(f"object.{number}", None)
            if fd is not None:
                os.close(fd)
            continue
        failed += _fail(device, kept, msg_id, opcode, number)
        if opcode == OP_OPEN and len(message) >= MESSAGE.size + OPEN.size:
            os.close(OPEN.unpack_from(message, MESSAGE.size)[2])
    return failed


def _fail(device: int, kept: dict[str, int], msg_id: int, opcode: int, number: int) -> bool:
    """A READ that is completed without data is EIO; without its object's descriptor it waits."""
    try:
        if opcode == OP_OPEN:
            os.write(device, b"copen %d,%d" % (msg_id, -errno.EIO))
        elif opcode == OP_READ:
            fd = kept.get(f"object.{number}")
            if fd is None:
                return False
            fcntl.ioctl(fd, READ_COMPLETE, msg_id)
    except OSError:  # who asked was killed
        pass
    return True
