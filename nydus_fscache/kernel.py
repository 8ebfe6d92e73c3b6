"""The system calls that this project makes, in one place, by ctypes (which releases the GIL).

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
from dataclasses import dataclass
from pathlib import Path

from nydus_fscache.errors import KernelRefused, MountpointError, NotPrivileged

_libc = ctypes.CDLL(None, use_errno=True)

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
MOUNT_ATTR_NODEV = 0x4
FSOPEN_CLOEXEC = 0x1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSMOUNT_CLOEXEC = 0x1
MOVE_MOUNT_F_EMPTY_PATH = 0x4
AT_FDCWD = -100

# x86-64 and aarch64 have the same numbers for these (asm-generic)
_SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 429, 430, 431, 432

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
}


def _raise_errno(what: str, hint: str | None = None) -> None:
    code = ctypes.get_errno()
    if code == errno.EPERM:
        raise NotPrivileged(
            f"{what}: not permitted", hint="it takes root in the initial user namespace"
        )
    raise KernelRefused(f"{what}: {os.strerror(code)}", hint=hint)


# -- fanotify --------------------------------------------------------------------------------------


def pre_content_group() -> int:
    """A group for pre-content events: non-blocking, with no limit of queue and marks.

    Event descriptors are read-only: we fill through our own, and an O_RDWR one
    could not be opened for a file that is executed, which denies the access.
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
        _raise_errno("fanotify_init", "needs CONFIG_FANOTIFY_ACCESS_PERMISSIONS")
    return int(fd)


def _mark(group: int, flags: int, fd: int) -> int:
    # By /proc/self/fd: the inode that we hold open, whatever its name is now.
    path = f"/proc/self/fd/{fd}".encode()
    return int(_libc.fanotify_mark(group, flags, ctypes.c_uint64(FAN_PRE_ACCESS), AT_FDCWD, path))


def mark_add(group: int, fd: int) -> None:
    """Have reads of the file announced; only files opened after this are covered."""
    if _mark(group, FAN_MARK_ADD, fd) < 0:
        code = ctypes.get_errno()
        if code == errno.EINVAL:
            raise KernelRefused(
                "this kernel has no pre-content events", hint="Linux 6.14 or later has them"
            )
        if code == errno.EOPNOTSUPP:
            name = fs_name(Path(f"/proc/self/fd/{fd}"))
            raise KernelRefused(
                f"{name} gives no pre-content events", hint="put --root on ext4, xfs or btrfs"
            )
        _raise_errno("fanotify_mark")


def mark_remove(group: int, fd: int) -> None:
    """The file is read without asking from now on; a mark that is gone already is no error."""
    if _mark(group, FAN_MARK_REMOVE, fd) < 0 and ctypes.get_errno() != errno.ENOENT:
        _raise_errno("fanotify_mark (remove)")


# -- mounts ----------------------------------------------------------------------------------------


def _fsconfig(fs: int, command: int, key: str | None, value: str | None) -> int:
    return int(
        _libc.syscall(
            _SYS_FSCONFIG,
            fs,
            command,
            key.encode() if key is not None else None,
            value.encode() if value is not None else None,
            0,
        )
    )


def _messages(fs: int) -> str:
    """What the kernel wrote to the file system context: its own reasons."""
    lines = []
    with contextlib.suppress(OSError):
        while message := os.read(fs, _MESSAGE_MAX):
            lines.append(message.decode("utf-8", "replace").strip()[2:])
    return "; ".join(lines)


def create_erofs(options: list[tuple[str, str]]) -> int:
    """A detached, read-only EROFS mount (descriptor); nothing is attached to the tree."""
    fs = _libc.syscall(_SYS_FSOPEN, b"erofs", FSOPEN_CLOEXEC)
    if fs < 0:
        _raise_errno("fsopen(erofs)", "load the module (modprobe erofs), or build it in")
    try:
        for key, value in options:
            if _fsconfig(fs, FSCONFIG_SET_STRING, key, value) < 0:
                code = os.strerror(ctypes.get_errno())
                raise KernelRefused(f"erofs refuses {key}={value}: {_messages(fs) or code}")
        _fsconfig(fs, FSCONFIG_SET_FLAG, "ro", None)
        if _fsconfig(fs, FSCONFIG_CMD_CREATE, None, None) < 0:
            code = ctypes.get_errno()
            reason = _messages(fs) or os.strerror(code)
            raise KernelRefused(
                f"erofs cannot mount this image: {reason}",
                hint="see the kernel's log (dmesg) and nydus-fscache doctor",
            )
        mount = _libc.syscall(
            _SYS_FSMOUNT, fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_RDONLY
        )
        if mount < 0:
            _raise_errno("fsmount")
        return int(mount)
    finally:
        os.close(fs)


def attach(mount: int, target: Path) -> None:
    """Put a detached mount at ``target``."""
    flags = MOVE_MOUNT_F_EMPTY_PATH
    path = os.fsencode(target)
    if _libc.syscall(_SYS_MOVE_MOUNT, mount, b"", AT_FDCWD, path, flags) < 0:
        code = ctypes.get_errno()
        raise MountpointError(
            f"cannot mount at {target}: {os.strerror(code)}", hint="is it a directory of yours?"
        )


def mount_erofs(source_fd: int, device_fds: list[int], target: Path) -> None:
    """Mount a file-backed EROFS image.

    Files are named by /proc/self/fd/N: no races over names, no commas, and each
    value is short (fsconfig takes 255 bytes).  ``device_fds`` in the order of the
    device table, all of them: without device= the kernel would take the slot's
    tag for a path.
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
        hint = "see who uses it: fuser -vm" if code == errno.EBUSY else "see nydus-fscache status"
        raise MountpointError(f"cannot unmount {target}: {os.strerror(code)}", hint=hint)


@dataclass(frozen=True, slots=True)
class MountInfo:
    """A line of /proc/self/mountinfo."""

    mountpoint: str
    fstype: str
    device: str  # "major:minor"


def mounts(fstype: str | None = None) -> list[MountInfo]:
    """All mounts of this namespace, or those of one file system type."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        fields = before.split(b" ")
        point = os.fsdecode(fields[4].decode("unicode_escape").encode("latin-1"))
        info = MountInfo(point, after.split(b" ")[0].decode(), fields[2].decode())
        if fstype is None or info.fstype == fstype:
            found.append(info)
    return found


def find_mount(target: Path) -> MountInfo | None:
    """What is mounted exactly at ``target``; the topmost."""
    found = [m for m in mounts() if m.mountpoint == str(target)]
    return found[-1] if found else None


# -- the rest --------------------------------------------------------------------------------------


class _Statfs(ctypes.Structure):
    _fields_ = [("f_type", ctypes.c_long), ("rest", ctypes.c_byte * 248)]


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
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def raise_nofile_limit() -> int:
    """Soft limit up to the hard one: an unanswered event holds a descriptor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
