"""EROFS and FUSE mounts by the new mount API, and umount(2).

Guarantees: a refusal of the kernel is a ``KernelRefused``, ``NotPrivileged`` or
``MountpointError`` that carries the kernel's own words where it has some, and no
descriptor is left behind.  Constants as in linux/mount.h and linux/fs.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from pathlib import Path

from nydus_fscache.errors import KernelRefused, MountpointError, NotPrivileged
from nydus_fscache.kernel.mountinfo import MountId, mount_id
from nydus_fscache.kernel.syscalls import AT_FDCWD, libc, refuse, syscall

IMAGE_TYPES = ("erofs", "fuse.nydus")  # of mounted images, in mountinfo
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
FSOPEN_CLOEXEC = 0x1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
FSMOUNT_CLOEXEC = 0x1
MOVE_MOUNT_F_EMPTY_PATH = 0x4

# The same numbers on x86-64 and all of asm-generic, since 5.2.
_SYS_MOVE_MOUNT, _SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 429, 430, 431, 432

_MESSAGE_MAX = 8192


def _fsopen(name: str) -> int:
    fs = syscall(_SYS_FSOPEN, name.encode(), FSOPEN_CLOEXEC)  # loads the module where there is one
    if fs < 0:
        hint = f"the kernel needs {name.upper()}: modprobe {name}"
        refuse(f"fsopen({name})", ctypes.get_errno(), hint=hint)
    return fs


def _fsconfig(fs: int, command: int, key: str | None, value: str | None) -> int:
    """0, or an errno."""
    rc = syscall(
        _SYS_FSCONFIG,
        fs,
        command,
        key.encode() if key is not None else None,
        value.encode() if value is not None else None,
        0,
    )
    return ctypes.get_errno() if rc < 0 else 0


def _set_strings(fs: int, fstype: str, options: list[tuple[str, str]]) -> None:
    for key, value in options:
        if code := _fsconfig(fs, FSCONFIG_SET_STRING, key, value):
            refuse(f"{fstype} refuses {key}={value}", code, _messages(fs))


def _detached(fs: int, attributes: int) -> int:
    """The mount (descriptor) of a superblock that was created."""
    mount = syscall(_SYS_FSMOUNT, fs, FSMOUNT_CLOEXEC, attributes)
    if mount < 0:
        refuse("fsmount", ctypes.get_errno())
    return mount


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
        os.close(_fsopen("erofs"))
    except NotPrivileged:
        return "\terofs\n" in Path("/proc/filesystems").read_text()
    except KernelRefused:
        return False
    return True


def erofs_has_device_table() -> bool:
    """Can an image have its blobs on devices of their own (Linux 5.16)?  The driver must be there,
    and sysfs mounted."""
    return Path("/sys/fs/erofs/features/device_table").exists()


def erofs_has_option(key: str) -> bool:
    """Does the driver act on a mount option?

    An option that was configured out is no error by itself: the kernel only says
    "not supported" and ignores it, so its messages are what counts.
    """
    fs = _fsopen("erofs")
    try:
        return _fsconfig(fs, FSCONFIG_SET_STRING, key, "probe") == 0 and not _messages(fs)
    finally:
        os.close(fs)


def create_erofs(options: list[tuple[str, str]]) -> int:
    """A detached, read-only EROFS mount (descriptor); nothing is attached to the tree."""
    fs = _fsopen("erofs")
    try:
        _set_strings(fs, "erofs", options)
        _fsconfig(fs, FSCONFIG_SET_FLAG, "ro", None)
        _create_superblock(fs)
        return _detached(fs, MOUNT_ATTR_RDONLY)
    finally:
        os.close(fs)


def create_fuse(device: int) -> int:
    """A detached, read-only FUSE mount (descriptor) of a descriptor of /dev/fuse, whose requests
    nobody but root can cause."""
    attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
    return _create_fuse(device, (), attributes)


def create_fuse_tree(device: int) -> int:
    """The same for everybody, by the rights that its files have."""
    return _create_fuse(device, ("allow_other", "default_permissions"), MOUNT_ATTR_RDONLY)


def _create_fuse(device: int, flags: tuple[str, ...], attributes: int) -> int:
    fs = _fsopen("fuse")
    try:
        options = [("source", "nydus-fscache"), ("subtype", "nydus"), ("fd", str(device))]
        options += [("rootmode", "40000"), ("user_id", "0"), ("group_id", "0")]
        _set_strings(fs, "fuse", options)
        for flag in ("ro", *flags):
            if code := _fsconfig(fs, FSCONFIG_SET_FLAG, flag, None):
                refuse(f"fuse refuses {flag}", code, _messages(fs))
        if code := _fsconfig(fs, FSCONFIG_CMD_CREATE, None, None):
            refuse("fuse cannot be mounted", code, _messages(fs))
        return _detached(fs, attributes)
    finally:
        os.close(fs)


def _create_superblock(fs: int) -> None:
    log = _open_log()
    try:
        code = _fsconfig(fs, FSCONFIG_CMD_CREATE, None, None)
        if code:
            reasons = [text for text in (_messages(fs), _logged(log)) if text]
            reasons.append(os.strerror(code))
            refuse(
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
    if syscall(_SYS_MOVE_MOUNT, mount, b"", AT_FDCWD, os.fsencode(target), flags) < 0:
        code = ctypes.get_errno()
        hint = f"mkdir {target}" if code == errno.ENOENT else "name an empty directory"
        raise MountpointError(f"cannot mount at {target}: {os.strerror(code)}", hint=hint)


def mount_erofs(source_fd: int, device_fds: list[int], target: Path) -> MountId:
    """Mount a file-backed EROFS image; its name, whatever becomes of it at once.

    Files are named by /proc/self/fd/N: no races over names, no commas, and each
    value is short (fsconfig takes 255 bytes).  ``device_fds`` in the order of the
    device table, all of them: without device= the kernel would take the slot's
    tag for a path, relative to our working directory.
    """
    options = [("source", f"/proc/self/fd/{source_fd}")]
    options += [("device", f"/proc/self/fd/{fd}") for fd in device_fds]
    return _mount(options, target)


def mount_erofs_fsid(target: Path, fsid: str, domain: str) -> None:
    """Mount an image that a cachefiles on-demand daemon serves."""
    options = [("fsid", fsid)]
    if domain:
        options.append(("domain_id", domain))
    _mount(options, target)


def _mount(options: list[tuple[str, str]], target: Path) -> MountId:
    mount = create_erofs(options)
    try:
        name = mount_id(mount)
        attach(mount, target)
        return name
    finally:
        os.close(mount)


def umount(target: Path, *, lazy: bool = False) -> None:
    """Raises ``MountpointError`` when it is busy or nothing is mounted there."""
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
    if libc.umount2(os.fsencode(target), flags) < 0:
        code = ctypes.get_errno()
        reason, hint = os.strerror(code), "see nydus-fscache status"
        if code == errno.EBUSY:
            reason, hint = "it is in use", f"see who uses it: fuser -vm {target}"
        elif code == errno.EINVAL:
            reason = "nothing is mounted there"
        raise MountpointError(f"cannot unmount {target}: {reason}", hint=hint)
