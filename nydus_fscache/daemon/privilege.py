"""Rights that the service never uses, given up before it starts its first thread.

Guarantees, for the calling thread and all that it starts later (the C core's too): no capability
but ``KEPT``, not even through a set-uid program (no_new_privs); the system calls of ``DENIED``
fail with EPERM, so does ``clone`` with a flag that makes a namespace, and ``clone3``, whose flags
a filter cannot see, does not exist (the C library then uses ``clone``).  A call that must not be
had is listed, rather than all that may: the C library, Python and OpenSSL need others in each
version, and a reader must not get EIO because one of them learned a new call.

This makes a fault harder to use; it is not a prison.  The service stays uid 0 with CAP_SYS_ADMIN
and may mount file systems: whoever runs code in it can become root of the node (by
``/proc/sys/kernel/core_pattern``, which uid 0 may write without any capability).

Source: capabilities(7), seccomp(2), asm/unistd.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from rafs_v6.values import dataclass

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
_LD_WORD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# in struct seccomp_data; the low half of the first argument, as all flags of clone are
_NR_OFF, _ARCH_OFF, _ARG0_OFF = 0, 4, 16
_X32_BIT = 0x40000000

# Numbers on x86-64 and on aarch64 (None: it has no such call).
DENIED: dict[str, tuple[int, int | None]] = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "setns": (308, 268),
    "unshare": (272, 97),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "quotactl": (179, 60),
    "acct": (163, 89),
    "personality": (135, 92),
    "open_by_handle_at": (304, 265),
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setreuid": (113, 145),
    "setregid": (114, 143),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setgroups": (116, 159),
    "syslog": (103, 116),
    "mknodat": (259, 33),
    "setfsuid": (122, 151),
    "setfsgid": (123, 152),
    "clock_adjtime": (305, 266),
    "quotactl_fd": (443, 443),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "vhangup": (153, 58),
    "mount": (165, 40),
    "fspick": (433, 433),
    "open_tree": (428, 428),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "mknod": (133, None),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
}
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET (linux/sched.h); a new time
# namespace is had by unshare and clone3 alone
NEW_NAMESPACE = 0x7E020000


@dataclass(frozen=True, slots=True)
class _Machine:
    """Its audit architecture, the column of ``DENIED``, and other numbers."""

    architecture: int
    column: int
    seccomp: int
    capset: int
    clone: int
    clone3: int = 435

    def denied(self) -> list[int]:
        return [n for numbers in DENIED.values() if (n := numbers[self.column]) is not None]


_MACHINES = {
    "x86_64": _Machine(0xC000003E, 0, seccomp=317, capset=126, clone=56),
    "aarch64": _Machine(0xC00000B7, 1, seccomp=277, capset=91, clone=220),
}


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


def _filter(machine: _Machine) -> bytes:
    """A BPF program: a foreign architecture ends the process, a denied number gets EPERM."""

    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    denied = step(_RETURN, _RET_ERRNO | errno.EPERM)
    program = [
        step(_LD_WORD, _ARCH_OFF),
        step(_JUMP_EQUAL, machine.architecture, 1, 0),
        step(_RETURN, _RET_KILL_PROCESS),
        step(_LD_WORD, _NR_OFF),
        step(_JUMP_AT_LEAST, _X32_BIT, 0, 1),
        denied,
    ]
    for number in machine.denied():  # one after the other: a jump reaches 255 steps at most
        program += [step(_JUMP_EQUAL, number, 0, 1), denied]
    program += [
        step(_JUMP_EQUAL, machine.clone3, 0, 1),
        step(_RETURN, _RET_ERRNO | errno.ENOSYS),
        step(_JUMP_EQUAL, machine.clone, 0, 3),
        step(_LD_WORD, _ARG0_OFF),
        step(_JUMP_ANY_BIT, NEW_NAMESPACE, 0, 1),
        denied,
        step(_RETURN, _RET_ALLOW),
    ]
    return b"".join(program)


def reduce() -> None:
    """Give up everything for good; before any thread is started, since each has its own rights.

    Raises ``OSError``.  On a machine whose numbers are not known here only
    no_new_privs is set.
    """
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    machine = _MACHINES.get(os.uname().machine)
    if machine is None:
        return
    _drop_capabilities(machine.capset)
    code = _filter(machine)
    program = _Program(len(code) // 8, code)
    _checked(
        _libc.syscall(machine.seccomp, _SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(program)),
        "seccomp",
    )
