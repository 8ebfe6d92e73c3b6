"""System calls by ctypes (which releases the GIL): the library, its errors, and small questions.

Guarantees: nothing is left behind.  Must not decide anything: policy is the callers'.
Mounts, marks and leases have files of their own beside this one.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import resource
from functools import cache
from pathlib import Path
from typing import NoReturn

from nydus_fscache.errors import KernelRefused, NotPrivileged

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

AT_FDCWD = -100  # fcntl.h
CAP_SYS_ADMIN = 21  # capability.h

_SYS_IO_URING_SETUP = 425  # the same on x86-64 and all of asm-generic
_IO_URING_PARAMS_SIZE = 120

# magic.h, for names in messages
_FS_NAMES = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0x01021994: "tmpfs",
    0x794C7630: "overlayfs",
    0x6969: "nfs",
    0x65735546: "fuse",
    0x73717368: "squashfs",
    0xE0F5E1E2: "erofs",
    0x858458F6: "ramfs",
    0xF2F52010: "f2fs",
    0x9FA0: "proc",
    0x62656572: "sysfs",
}


def syscall(number: int, *args: int | bytes | None) -> int:
    """Every integer as a long: a variadic call leaves the upper half of an int undefined."""
    typed = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in args]
    return int(libc.syscall(ctypes.c_long(number), *typed))


def refuse(what: str, code: int, reason: str = "", hint: str | None = None) -> NoReturn:
    if code in (errno.EPERM, errno.EACCES):
        raise NotPrivileged(
            f"{what}: {os.strerror(code)}",
            hint="it takes root (CAP_SYS_ADMIN) in the initial user namespace",
        )
    raise KernelRefused(f"{what}: {reason or os.strerror(code)}", hint=hint)


class _Statfs(ctypes.Structure):
    _fields_ = (("f_type", ctypes.c_long), ("rest", ctypes.c_byte * 248))


def fs_name(path: Path) -> str:
    """Name of the file system that ``path`` is on; its magic number when it has no name here."""
    buffer = _Statfs()
    if libc.statfs(os.fsencode(path), ctypes.byref(buffer)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))
    magic = buffer.f_type & 0xFFFFFFFF
    return _FS_NAMES.get(magic, f"{magic:#x}")


def syncfs(fd: int) -> None:
    if libc.syncfs(fd) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def is_admin() -> bool:
    """CAP_SYS_ADMIN in the initial user namespace: what mounts and pre-content events take.

    Root of a container's user namespace has the bit, but not for these.
    """
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("\nCapEff:")[2].split(maxsplit=1)[0], 16)
    initial = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
    return initial and bool(effective >> CAP_SYS_ADMIN & 1)


def has_io_uring() -> bool:
    """May this process make a ring?  Sysctl and seccomp both answer here, and only here."""
    params = ctypes.create_string_buffer(_IO_URING_PARAMS_SIZE)
    ring = int(libc.syscall(ctypes.c_long(_SYS_IO_URING_SETUP), ctypes.c_long(1), params))
    if ring < 0:
        return False
    os.close(ring)
    return True


def trim() -> None:
    """Give back the memory that a start has used and left."""
    gc.collect()
    libc.malloc_trim(0)


@cache
def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def raise_nofile_limit(pid: int = 0) -> int:
    """Soft limit of a process (0: this one) up to its hard one.

    An unanswered event holds a descriptor, and at the limit the kernel denies the
    accesses that it could not hand out; the keeper holds two for every blob.
    """
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
    return hard
