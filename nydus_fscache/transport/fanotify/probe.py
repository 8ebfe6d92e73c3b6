"""Does this kernel deliver pre-content events, and mount EROFS from a file?

Guarantees: every wait ends, whatever the kernel does; probe files have no name, so that even
SIGKILL leaves none.  Source: reference kernel-transports 5.2.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from nydus_fscache.errors import FscacheError, KernelRefused
from nydus_fscache.kernel.fanotify import mark_add, pre_content_group
from nydus_fscache.kernel.mount import create_erofs
from nydus_fscache.kernel.probe import Finding, existing_parent
from nydus_fscache.transport.tiny_image import tiny_image

_EVENT = struct.Struct("=IBBHQii")  # struct fanotify_event_metadata
_ANSWER = struct.Struct("=iI")  # struct fanotify_response
_FAN_ALLOW = 1
_EVENT_MAX = 256
_POLL_MS = 5
_TEST_PATIENCE_S = 2.0


def fanotify(root: Path) -> Finding:
    """Pre-content events on the root's file system, and EROFS over a file of it."""
    name, existing = "fanotify", existing_parent(root)
    try:
        deliver_event(existing)
        _mount_from_file(existing)
    except FscacheError as e:
        return Finding(name, False, str(e), e.hint or "see dmesg")
    except OSError as e:
        return Finding(
            name, False, f"probe in {existing}: {e.strerror}", "choose another --root"
        )
    return Finding(name, True, "pre-content events and file-backed EROFS work")


@contextlib.contextmanager
def _nameless_file(directory: Path, content: bytes) -> Iterator[int]:
    fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, content)
        yield fd
    finally:
        os.close(fd)


def _mount_from_file(directory: Path) -> None:
    with _nameless_file(directory, tiny_image()) as fd:
        try:
            os.close(create_erofs([("source", f"/proc/self/fd/{fd}")]))
        except KernelRefused as e:
            raise KernelRefused(
                f"no file-backed EROFS: {e}",
                hint="use Linux 6.12 or later with CONFIG_EROFS_FS_BACKED_BY_FILE",
            ) from e


def deliver_event(directory: Path) -> None:
    """A read of a marked file must wait for our answer; raises ``KernelRefused`` if it does not.

    The reader is a thread, and ends in any case: closing the group, which nobody
    else holds, lets it through.
    """
    group = pre_content_group()
    done = threading.Event()
    try:
        with _nameless_file(directory, b"x") as fd:
            mark_add(group, fd)
            # A mark covers what is opened after it, so by name again.
            reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            threading.Thread(target=_read_one, args=(reader, done), daemon=True).start()
            answered = _answer_until(group, done)
    finally:
        os.close(group)
    if not answered:
        raise KernelRefused("a marked file was read and no event came", hint="see dmesg")
    if not done.wait(_TEST_PATIENCE_S):
        raise KernelRefused("the reader of a marked file was not let go on", hint="see dmesg")


def _read_one(fd: int, done: threading.Event) -> None:
    """One read(2) only: each, that at the end of the file too, is an event of its own."""
    try:
        os.read(fd, 1)
    finally:
        os.close(fd)
        done.set()


def _answer_until(group: int, done: threading.Event) -> int:
    """Answer what comes, for as long as there is patience; how many events came."""
    poll = select.poll()
    poll.register(group, select.POLLIN)
    deadline = time.monotonic() + _TEST_PATIENCE_S
    answered = 0
    while not done.is_set() and time.monotonic() < deadline:
        if not poll.poll(_POLL_MS):
            continue
        fd = _EVENT.unpack_from(os.read(group, _EVENT_MAX))[5]
        try:
            os.write(group, _ANSWER.pack(fd, _FAN_ALLOW))
        finally:
            os.close(fd)  # behind the answer, which goes by the descriptor's number
        answered += 1
    return answered
