"""fanotify pre-content groups and marks (Linux 6.14 and later).

Guarantees: a refusal of the kernel is a ``KernelRefused`` or ``NotPrivileged`` with a next step.
Constants as in linux/fanotify.h, of which Debian 12's lacks the newer ones.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from nydus_fscache.errors import KernelRefused
from nydus_fscache.kernel.syscalls import AT_FDCWD, fs_name, libc, refuse

FAN_CLOEXEC = 0x1
FAN_NONBLOCK = 0x2
FAN_CLASS_PRE_CONTENT = 0x8
# Without it the kernel ALLOWS what does not fit the queue, and readers see zeros.
FAN_UNLIMITED_QUEUE = 0x10
FAN_UNLIMITED_MARKS = 0x20
FAN_MARK_ADD = 0x1
FAN_MARK_REMOVE = 0x2
FAN_PRE_ACCESS = 0x00100000

libc.fanotify_mark.argtypes = (
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_uint64,  # by default ctypes would pass an int, which cuts the upper half of the mask
    ctypes.c_int,
    ctypes.c_char_p,
)


def pre_content_group() -> int:
    """A group for pre-content events: non-blocking, with no limit of queue and marks.

    When its last descriptor is closed, the kernel lets all waiting readers through
    to the holes.  Event descriptors are read-only: we fill through our own, and an
    O_RDWR one could not be opened for a file that is executed, which denies the access.
    """
    flags = (
        FAN_CLASS_PRE_CONTENT
        | FAN_CLOEXEC
        | FAN_NONBLOCK
        | FAN_UNLIMITED_QUEUE
        | FAN_UNLIMITED_MARKS
    )
    fd = libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC | os.O_LARGEFILE)
    if fd < 0:
        code = ctypes.get_errno()
        hint = "it needs a kernel with CONFIG_FANOTIFY_ACCESS_PERMISSIONS"
        if code == errno.EMFILE:
            hint = "raise sysctl fs.fanotify.max_user_groups, or the limit of open files"
        refuse("fanotify_init", code, hint=hint)
    return int(fd)


def _mark(group: int, flags: int, fd: int) -> int:
    """0, or an errno.  By /proc/self/fd: the inode that we hold open, whatever its name is now."""
    path = f"/proc/self/fd/{fd}".encode()
    rc = libc.fanotify_mark(group, flags, FAN_PRE_ACCESS, AT_FDCWD, path)
    return ctypes.get_errno() if rc < 0 else 0


def mark_add(group: int, fd: int) -> None:
    """Have reads of the file announced.

    Only what is opened after this is covered: EROFS opens its devices inside the
    mount, so a mark that comes later than that is accepted, and gives no event ever.
    """
    code = _mark(group, FAN_MARK_ADD, fd)
    if code == errno.EINVAL:
        raise KernelRefused(
            "this kernel has no pre-content events", hint="Linux 6.14 or later has them"
        )
    if code == errno.EOPNOTSUPP:
        name = fs_name(Path(f"/proc/self/fd/{fd}"))
        raise KernelRefused(
            f"{name} gives no pre-content events", hint="put --root on ext4, xfs or btrfs"
        )
    if code:
        refuse("fanotify_mark", code)


def mark_remove(group: int, fd: int) -> None:
    """The file is read without asking from now on; a mark that is gone already is no error."""
    code = _mark(group, FAN_MARK_REMOVE, fd)
    if code not in (0, errno.ENOENT):
        refuse("fanotify_mark (remove)", code)
