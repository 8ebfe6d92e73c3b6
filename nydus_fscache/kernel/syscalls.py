"""The system calls that this project makes, in one place, by ctypes (which releases the GIL).

Guarantees: what the kernel refuses is a ``KernelRefused``, ``NotPrivileged`` or
``MountpointError`` that carries the kernel's own words where it has some, and no
descriptor is left behind.  Must not decide anything: policy is the callers'.

Constants are named as in the kernel's headers; Debian 12's lack the newer ones.
Comments say what a wrong guess would do.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import signal
from pathlib import Path
from typing import NoReturn

from nydus_fscache.errors import KernelRefused, MountpointError, NotPrivileged

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.fanotify_mark.argtypes = (
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_uint64,  # by default ctypes would pass an int, which cuts the upper half of the mask
    ctypes.c_int,
    ctypes.c_char_p,
)

# fanotify.h
FAN_CLOEXEC = 0x1
FAN_NONBLOCK = 0x2
FAN_CLASS_PRE_CONTENT = 0x8
# Without it the kernel ALLOWS what does not fit the queue, and readers see zeros.
FAN_UNLIMITED_QUEUE = 0x10
FAN_UNLIMITED_MARKS = 0x20
FAN_MARK_ADD = 0x1
FAN_MARK_REMOVE = 0x2
FAN_PRE_ACCESS = 0x00100000

# mount.h, fs.h
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8
MOUNT_ATTR_RDONLY = 0x1
FSOPEN_CLOEXEC = 0x1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSMOUNT_CLOEXEC = 0x1
MOVE_MOUNT_F_EMPTY_PATH = 0x4
AT_FDCWD = -100

# capability.h
CAP_SYS_ADMIN = 21

# The same numbers on x86-64 and all of asm-generic, since 5.2 and 5.1.
_SYS_IO_URING_SETUP = 425
_SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 429, 430, 431, 432

_IO_URING_PARAMS_SIZE = 120
_MESSAGE_MAX = 8192

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


def _syscall(number: int, *args: int | bytes | None) -> int:
    """Every integer as a long: a variadic call leaves the upper half of an int undefined."""
    typed = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in args]
    return int(_libc.syscall(ctypes.c_long(number), *typed))


def _refuse(what: str, code: int, reason: str = "", hint: str | None = None) -> NoReturn:
    if code in (errno.EPERM, errno.EACCES):
        raise NotPrivileged(
            f"{what}: {os.strerror(code)}",
            hint="it takes root (CAP_SYS_ADMIN) in the initial user namespace",
        )
    raise KernelRefused(f"{what}: {reason or os.strerror(code)}", hint=hint)


# -- fanotify --------------------------------------------------------------------------------------


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
    fd = _libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC | os.O_LARGEFILE)
    if fd < 0:
        code = ctypes.get_errno()
        hint = "it needs a kernel with CONFIG_FANOTIFY_ACCESS_PERMISSIONS"
        if code == errno.EMFILE:
            hint = "raise sysctl fs.fanotify.max_user_groups, or the limit of open files"
        _refuse("fanotify_init", code, hint=hint)
    return int(fd)


def _mark(group: int, flags: int, fd: int) -> int:
    """0, or an errno.  By /proc/self/fd: the inode that we hold open, whatever its name is now."""
    path = f"/proc/self/fd/{fd}".encode()
    rc = _libc.fanotify_mark(group, flags, FAN_PRE_ACCESS, AT_FDCWD, path)
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
        _refuse("fanotify_mark", code)


def mark_remove(group: int, fd: int) -> None:
    """The file is read without asking from now on; a mark that is gone already is no error."""
    code = _mark(group, FAN_MARK_REMOVE, fd)
    if code not in (0, errno.ENOENT):
        _refuse("fanotify_mark (remove)", code)


# -- mounts ----------------------------------------------------------------------------------------


def _fsopen_erofs() -> int:
    fs = _syscall(_SYS_FSOPEN, b"erofs", FSOPEN_CLOEXEC)  # loads the module where there is one
    if fs < 0:
        _refuse("fsopen(erofs)", ctypes.get_errno(), hint="the kernel needs EROFS: modprobe erofs")
    return fs


def _fsconfig(fs: int, command: int, key: str | None, value: str | None) -> int:
    """0, or an errno."""
    rc = _syscall(
        _SYS_FSCONFIG,
        fs,
        command,
        key.encode() if key is not None else None,
        value.encode() if value is not None else None,
        0,
    )
    return ctypes.get_errno() if rc < 0 else 0


def _messages(fs: int) -> str:
    """What the kernel wrote to the file system context: its own reasons."""
    lines = []
    with contextlib.suppress(OSError):  # ENODATA: no more
        while message := os.read(fs, _MESSAGE_MAX):
            lines.append(message.decode("utf-8", "replace").strip()[2:])  # "e ", "w " or "i "
    return "; ".join(lines)


def _open_log() -> int:
    """The kernel's log from now on; -1 where it may not be read (a container)."""
    try:
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(log, 0, os.SEEK_END)
    except OSError:
        return -1
    return log


def _logged(log: int) -> str:
    """What EROFS logged since: most of its reasons go there and not to the context.

    Another mount that fails in the same moment may be in it too.
    """
    lines = []
    with contextlib.suppress(OSError):  # EAGAIN: no more; EPIPE: overrun, by a flood
        while record := os.read(log, _MESSAGE_MAX).decode("utf-8", "replace"):
            text = record.partition(";")[2].partition("\n")[0]
            if text.startswith("erofs"):
                lines.append(text.partition(": ")[2] or text)
    return "; ".join(lines)


def has_erofs() -> bool:
    """Is the driver there?  Loads the module if it has to."""
    try:
        os.close(_fsopen_erofs())
    except NotPrivileged:
        return "\terofs\n" in Path("/proc/filesystems").read_text()
    except KernelRefused:
        return False
    return True


def erofs_has_option(key: str) -> bool:
    """Does the driver act on a mount option?

    An option that was configured out is no error by itself: the kernel only says
    "not supported" and ignores it, so its messages are what counts.
    """
    fs = _fsopen_erofs()
    try:
        return _fsconfig(fs, FSCONFIG_SET_STRING, key, "probe") == 0 and not _messages(fs)
    finally:
        os.close(fs)


def create_erofs(options: list[tuple[str, str]]) -> int:
    """A detached, read-only EROFS mount (descriptor); nothing is attached to the tree."""
    fs = _fsopen_erofs()
    try:
        for key, value in options:
            code = _fsconfig(fs, FSCONFIG_SET_STRING, key, value)
            if code:
                _refuse(f"erofs refuses {key}={value}", code, _messages(fs))
        _fsconfig(fs, FSCONFIG_SET_FLAG, "ro", None)
        _create_superblock(fs)
        mount = _syscall(_SYS_FSMOUNT, fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY)
        if mount < 0:
            _refuse("fsmount", ctypes.get_errno())
        return mount
    finally:
        os.close(fs)


def _create_superblock(fs: int) -> None:
    log = _open_log()
    try:
        code = _fsconfig(fs, FSCONFIG_CMD_CREATE, None, None)
        if code:
            reasons = [text for text in (_messages(fs), _logged(log)) if text]
            reasons.append(os.strerror(code))
            _refuse(
                "erofs cannot mount this image",
                code,
                ": ".join(reasons),
                "see the kernel's log (dmesg) and nydus-fscache doctor",
            )
    finally:
        if log >= 0:
            os.close(log)


def attach(mount: int, target: Path) -> None:
    """Put a detached mount at ``target``."""
    flags = MOVE_MOUNT_F_EMPTY_PATH
    if _syscall(_SYS_MOVE_MOUNT, mount, b"", AT_FDCWD, os.fsencode(target), flags) < 0:
        code = ctypes.get_errno()
        hint = f"mkdir {target}" if code == errno.ENOENT else "name an empty directory"
        raise MountpointError(f"cannot mount at {target}: {os.strerror(code)}", hint=hint)


def mount_erofs(source_fd: int, device_fds: list[int], target: Path) -> None:
    """Mount a file-backed EROFS image.

    Files are named by /proc/self/fd/N: no races over names, no commas, and each
    value is short (fsconfig takes 255 bytes).  ``device_fds`` in the order of the
    device table, all of them: without device= the kernel would take the slot's
    tag for a path, relative to our working directory.
    """
    options = [("source", f"/proc/self/fd/{source_fd}")]
    options += [("device", f"/proc/self/fd/{fd}") for fd in device_fds]
    _mount(options, target)


def mount_erofs_fsid(target: Path, fsid: str, domain: str) -> None:
    """Mount an image that a cachefiles on-demand daemon serves."""
    options = [("fsid", fsid)]
    if domain:
        options.append(("domain_id", domain))
    _mount(options, target)


def _mount(options: list[tuple[str, str]], target: Path) -> None:
    mount = create_erofs(options)
    try:
        attach(mount, target)
    finally:
        os.close(mount)


def umount(target: Path, *, lazy: bool = False) -> None:
    """Raises ``MountpointError`` when it is busy or nothing is mounted there."""
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
    if _libc.umount2(os.fsencode(target), flags) < 0:
        code = ctypes.get_errno()
        reason, hint = os.strerror(code), "see nydus-fscache status"
        if code == errno.EBUSY:
            reason, hint = "it is in use", f"see who uses it: fuser -vm {target}"
        elif code == errno.EINVAL:
            reason = "nothing is mounted there"
        raise MountpointError(f"cannot unmount {target}: {reason}", hint=hint)


# -- the rest --------------------------------------------------------------------------------------


class _Statfs(ctypes.Structure):
    _fields_ = (("f_type", ctypes.c_long), ("rest", ctypes.c_byte * 248))


def fs_name(path: Path) -> str:
    """Name of the file system that ``path`` is on; its magic number when it has no name here."""
    buffer = _Statfs()
    if _libc.statfs(os.fsencode(path), ctypes.byref(buffer)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))
    magic = buffer.f_type & 0xFFFFFFFF
    return _FS_NAMES.get(magic, f"{magic:#x}")


def syncfs(fd: int) -> None:
    if _libc.syncfs(fd) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def try_write_lease(path: Path) -> bool:
    """Is nobody, the kernel included, using the file?

    A write lease is granted only when no other open of the file exists; EROFS
    keeps its backing files open for as long as the superblock lives, which may be
    longer than the mount (overlay, lazy unmount).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        return is_sole_open(fd)
    finally:
        os.close(fd)


def is_sole_open(fd: int) -> bool:
    """The same, asked of a descriptor: does nobody else have the file open?"""
    try:
        # Whoever opens the file while we have the lease makes the kernel signal us:
        # by default SIGIO, which would end the process.  SIGURG is ignored by default.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return False
    return True


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
    ring = int(_libc.syscall(ctypes.c_long(_SYS_IO_URING_SETUP), ctypes.c_long(1), params))
    if ring < 0:
        return False
    os.close(ring)
    return True


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
