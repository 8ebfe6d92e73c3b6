"""What the service gives up before it starts its first thread: rights that it never uses.

Guarantees, for the calling thread and all that it starts later: no capability
but ``KEPT``, not even through a set-uid program (no_new_privs); the system
calls of ``DENIED`` fail with EPERM.  A call that must not exist is listed,
rather than all that may: what the C library, Python and OpenSSL need differs
by version, and a reader must not get EIO because one of them learned a new call.

Source: capabilities(7), seccomp(2), asm/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

_libc = ctypes.CDLL(None, use_errno=True)

# linux/capability.h
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN, CAP_SYSLOG = 1, 2, 21, 34
KEPT = (
    CAP_DAC_OVERRIDE,  # blobs of other users in a localfs backend, mountpoints
    CAP_DAC_READ_SEARCH,
    CAP_SYS_ADMIN,  # mount(2), fanotify marks, /dev/cachefiles
    CAP_SYSLOG,  # why EROFS refused an image, from the kernel's log
)

_PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_READ, _PR_CAPBSET_DROP = 38, 23, 24
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITIES = 64  # of the interface; the kernel has fewer

# linux/seccomp.h, linux/filter.h, linux/audit.h
_SECCOMP_SET_MODE_FILTER = 1
_RET_ALLOW, _RET_ERRNO, _RET_KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_LD_WORD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NR_OFF, _ARCH_OFF = 0, 4  # in struct seccomp_data
_X32_BIT = 0x40000000

# Per machine: (audit architecture, seccomp(2), capset(2), the numbers of DENIED)
DENIED = (
    "ptrace", "process_vm_readv", "process_vm_writev", "kexec_load", "kexec_file_load",
    "init_module", "finit_module", "delete_module", "bpf", "perf_event_open", "userfaultfd",
    "keyctl", "add_key", "request_key", "setns", "unshare", "pivot_root", "chroot", "reboot",
    "swapon", "swapoff", "settimeofday", "clock_settime", "adjtimex", "sethostname",
    "setdomainname", "quotactl", "acct", "personality", "open_by_handle_at", "setuid", "setgid",
    "setreuid", "setregid", "setresuid", "setresgid", "setgroups", "syslog", "mknodat",
)  # fmt: skip
_MACHINES = {
    "x86_64": (
        0xC000003E, 317, 126,
        (101, 310, 311, 246, 320, 175, 313, 176, 321, 298, 323, 250, 248, 249, 308, 272, 155,
         161, 169, 167, 168, 164, 227, 159, 170, 171, 179, 163, 135, 304, 105, 106, 113, 114,
         117, 119, 116, 103, 259),
    ),
    "aarch64": (
        0xC00000B7, 277, 91,
        (117, 270, 271, 104, 294, 105, 273, 106, 280, 241, 282, 219, 217, 218, 268, 97, 41, 51,
         142, 224, 225, 170, 112, 171, 161, 162, 60, 89, 92, 265, 146, 144, 145, 143, 147, 149,
         159, 116, 33),
    ),
}  # fmt: skip


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _checked(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _drop_capabilities(capset: int) -> None:
    for capability in range(_CAPABILITIES):
        held = _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0)
        if held < 0:
            break  # the kernel has no more of them
        # none to drop: a keeper that a service started has given it up already
        if held and capability not in KEPT:
            _checked(_libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), "prctl(PR_CAPBSET_DROP)")
    mask = sum(1 << c for c in KEPT)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = struct.pack("=6I", low, low, 0, high, high, 0)
    _checked(_libc.syscall(capset, header, data), "capset")


def _filter(architecture: int, numbers: tuple[int, ...]) -> bytes:
    """A BPF program: a foreign architecture ends the process, a denied number gets EPERM."""

    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    denied = _RET_ERRNO | errno.EPERM
    program = [
        step(_LD_WORD, _ARCH_OFF),
        step(_JUMP_EQUAL, architecture, 1, 0),
        step(_RETURN, _RET_KILL_PROCESS),
        step(_LD_WORD, _NR_OFF),
        step(_JUMP_AT_LEAST, _X32_BIT, len(numbers) + 1, 0),
    ]
    for i, number in enumerate(numbers):
        program.append(step(_JUMP_EQUAL, number, len(numbers) - i, 0))
    program += [step(_RETURN, _RET_ALLOW), step(_RETURN, denied)]
    return b"".join(program)


def reduce() -> None:
    """Give up everything for good; before any thread is started, since each has its own rights.

    Raises ``OSError``.  On a machine whose numbers are not known here only
    no_new_privs is set.
    """
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return
    architecture, seccomp, capset, numbers = machine
    _drop_capabilities(capset)
    code = _filter(architecture, numbers)
    program = _Program(len(code) // 8, code)
    _checked(
        _libc.syscall(seccomp, _SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(program)), "seccomp"
    )
