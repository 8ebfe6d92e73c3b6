"""The mount table as the kernel has it: what is mounted where, which mount is which, what changed.

Guarantees: a mount is known by an id that names no other mount as long as the machine runs
(statx ``STATX_MNT_ID_UNIQUE`` and statmount(2), Linux 6.8); before that by the id of mountinfo and
the device of its file system, one of which differs for whatever takes its place.  One mount is
asked for alone where the kernel can be asked so (Linux 6.13), however many others there are.
Nothing here changes a mount.

Source: proc_pid_mountinfo(5), linux/stat.h, linux/mount.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import select
import struct
from collections.abc import Iterable
from pathlib import Path

from rafs_v6.values import dataclass

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_AT_EMPTY_PATH, _AT_NO_AUTOMOUNT, _AT_STATX_DONT_SYNC = 0x1000, 0x800, 0x4000
_STATX_MNT_ID = 0x1000
_STATX_MNT_ID_UNIQUE = 0x4000
_STATX_ATTR_MOUNT_ROOT = 0x2000  # Linux 5.8
_STATX_SIZE = 256
_STX_MASK_OFF, _STX_ATTRIBUTES_OFF, _STX_DEV_OFF, _STX_MNT_ID_OFF = 0, 0x8, 0x88, 0x90
_SYS_STATMOUNT = 457  # the same on every architecture
_SB_BASIC, _MNT_BASIC, _MNT_POINT, _FS_TYPE, _FS_SUBTYPE, _SB_SOURCE = 1, 2, 16, 32, 256, 512
_WANTED = _SB_BASIC | _MNT_BASIC | _MNT_POINT | _FS_TYPE | _FS_SUBTYPE | _SB_SOURCE
_NEEDED = _SB_BASIC | _MNT_BASIC | _MNT_POINT | _FS_TYPE | _SB_SOURCE  # the last since Linux 6.13
_STATMOUNT_SIZE, _STRINGS_OFF = 512 + 4 * 4096, 512  # a path, a type, a source
# struct statmount: mask, device, offsets of strings, mount and parent
_STATMOUNT = struct.Struct("=8xQII12xIQQII44xI8xII")
_MNT_ID_REQ = struct.Struct("=IIQQ")  # size, spare, mnt_id, param


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of /proc/self/mountinfo.  ``mountpoint``: in bytes that are not UTF-8 as surrogates;
    ``id``: free for another mount when this one is gone."""

    mountpoint: str
    fstype: str
    device: str  # "major:minor"
    id: int
    parent: int
    source: str


@dataclass(frozen=True, slots=True)
class MountId:
    """Names one mount.  ``unique``: 0 before Linux 6.8."""

    unique: int
    id: int
    device: str


def _unescaped(field: bytes) -> str:
    """The kernel escapes blanks, newlines and backslashes as \\ooo."""
    if b"\\" not in field:
        return os.fsdecode(field)
    first, *others = field.split(b"\\")
    return os.fsdecode(first + b"".join(bytes([int(o[:3], 8)]) + o[3:] for o in others))


def _parse(lines: Iterable[bytes], fstype: str | None = None) -> list[Mount]:
    found = []
    for line in lines:
        before, _, after = line.partition(b" - ")
        number, parent, device, _, point, *_ = before.split(b" ")
        kind, source, _ = after.split(b" ", 2)
        if fstype is None or kind.decode() == fstype:
            place, named = _unescaped(point), _unescaped(source)
            found.append(
                Mount(place, kind.decode(), device.decode(), int(number), int(parent), named)
            )
    return found


def mounts(fstype: str | None = None, pid: int | str = "self") -> list[Mount]:
    """All mounts of a process's namespace, or those of one file system type; lower ones first."""
    return _parse(_lines(pid), fstype)


def _lines(pid: int | str = "self") -> list[bytes]:
    return Path(f"/proc/{pid}/mountinfo").read_bytes().splitlines()


class Table:
    """One look at this namespace's mounts, of which there may be thousands: a line is taken apart
    when it is asked for."""

    def __init__(self) -> None:
        self._lines = _lines()
        self._by_id = {line[: line.index(b" ")]: line for line in self._lines}

    def at(self, target: str) -> list[Mount]:
        """What is mounted exactly there (absolute, resolved); lower ones first."""
        # the kernel escapes no other bytes of a path
        name = b" " + re.sub(rb"[ \t\n\\]", _escaped, os.fsencode(target)) + b" "
        return [m for m in _parse(x for x in self._lines if name in x) if m.mountpoint == target]

    def with_id(self, number: int) -> Mount | None:
        line = self._by_id.get(b"%d" % number)
        return None if line is None else _parse([line])[0]


def _escaped(match: re.Match[bytes]) -> bytes:
    return b"\\%03o" % match[0][0]


def mounts_at(target: str) -> list[Mount]:
    """What is mounted exactly at ``target`` now; lower ones first."""
    return Table().at(target)


def find_mount(target: Path) -> Mount | None:
    """What is mounted exactly at ``target`` (absolute, resolved); the topmost."""
    found = mounts_at(str(target))
    return found[-1] if found else None


def mount_id(fd: int) -> MountId:
    """The mount that an open file (``O_PATH`` suffices) is on; ``OSError``."""

    def ask(mask: int) -> tuple[int, str]:
        buffer = _statx(fd, mask)
        has = struct.unpack_from("=I", buffer, _STX_MASK_OFF)[0] & mask
        major, minor = struct.unpack_from("=II", buffer, _STX_DEV_OFF)
        found = struct.unpack_from("=Q", buffer, _STX_MNT_ID_OFF)[0]
        return (int(found) if has else 0), f"{major}:{minor}"

    old, device = ask(_STATX_MNT_ID)
    unique, _ = ask(_STATX_MNT_ID_UNIQUE)
    return MountId(unique, old, device)


def _statx(fd: int, mask: int) -> ctypes.Array[ctypes.c_char]:
    """As it is known without asking a server for it."""
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    if _libc.statx(fd, b"", _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, mask, buffer) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return buffer


def _is_root(fd: int) -> bool:
    """Of a mount?"""
    attributes = struct.unpack_from("=Q", _statx(fd, 0), _STX_ATTRIBUTES_OFF)[0]
    return bool(attributes & _STATX_ATTR_MOUNT_ROOT)


def device_of(path: Path) -> str:
    """Of the file that a path leads to, "major:minor", as it is known without asking a server for
    it; ``OSError``."""
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    flags = _AT_STATX_DONT_SYNC | _AT_NO_AUTOMOUNT
    if _libc.statx(-100, os.fsencode(path), flags, 0, buffer) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    major, minor = struct.unpack_from("=II", buffer, _STX_DEV_OFF)
    return f"{major}:{minor}"


def mount_id_at(path: Path) -> MountId:
    """The mount that a path leads to, through whatever is mounted on it; ``OSError``."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return mount_id(fd)
    finally:
        os.close(fd)


def _stat(unique: int) -> tuple[Mount, int] | int | None:
    """A mount of this namespace, and its parent's unique id; before Linux 6.13 its id in mountinfo,
    where the rest is; None: it is in it no more.

    Raises ``OSError`` where the call does not exist, or is forbidden by a filter."""
    request = _MNT_ID_REQ.pack(_MNT_ID_REQ.size, 0, unique, _WANTED)
    buffer = ctypes.create_string_buffer(_STATMOUNT_SIZE)
    size = ctypes.c_long(_STATMOUNT_SIZE)
    if _libc.syscall(ctypes.c_long(_SYS_STATMOUNT), request, buffer, size, ctypes.c_long(0)) < 0:
        code = ctypes.get_errno()
        if code == errno.ENOENT:
            return None
        raise OSError(code, os.strerror(code))
    raw = buffer.raw
    found = _STATMOUNT.unpack_from(raw)
    mask, major, minor, fstype, _, above, number, parent, point, subtype, source = found
    if mask & _NEEDED != _NEEDED:
        return int(number)

    def text(at: int) -> str:
        return os.fsdecode(raw[_STRINGS_OFF + at : raw.index(b"\0", _STRINGS_OFF + at)])

    kind = text(fstype) + (f".{text(subtype)}" if mask & _FS_SUBTYPE else "")
    mount = Mount(text(point), kind, f"{major}:{minor}", number, parent, text(source))
    return mount, above


def stack_at(target: Path) -> dict[MountId, Mount]:
    """What is mounted exactly at ``target`` (absolute, resolved) and can be seen there, or comes to
    light when others are unmounted there; lower ones first."""
    with contextlib.suppress(OSError):
        fd = os.open(target, os.O_PATH | os.O_CLOEXEC)
        try:
            if not _is_root(fd):
                return {}
            name = mount_id(fd)
        finally:
            os.close(fd)
        found: dict[MountId, Mount] = {}
        unique = name.unique
        while unique and isinstance(told := _stat(unique), tuple):
            mount, above = told
            if found and mount.mountpoint != str(target):
                break
            found[MountId(unique, mount.id, mount.device)] = mount
            unique = above if above != unique else 0  # the root is its own parent
        if found:
            return dict(reversed(found.items()))
    return {MountId(0, m.id, m.device): m for m in mounts_at(str(target))}


def look_up(names: Iterable[MountId], table: Table | None = None) -> dict[MountId, Mount]:
    """Those of these mounts that are still in this namespace, as they are now, or as ``table``
    says of those that are, where the kernel cannot be asked for one alone."""
    found: dict[MountId, Mount] = {}
    numbers: dict[MountId, int] = {}
    for name in names:
        told: tuple[Mount, int] | int | None = name.id
        with contextlib.suppress(OSError):  # then the id of mountinfo has to do
            told = _stat(name.unique) if name.unique else name.id
        if isinstance(told, int):
            numbers[name] = told
        elif told is not None:
            found[name] = told[0]
    if numbers:
        table = table or Table()
        lines = {name: table.with_id(number) for name, number in numbers.items()}
        found |= {name: m for name, m in lines.items() if m is not None}
    return {name: m for name, m in found.items() if m.device == name.device}


class Watch:
    """Tells when this namespace's mount table has changed since the last look."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLPRI)

    def wait(self, timeout_s: float) -> bool:
        return bool(self._poll.poll(int(timeout_s * 1000)))

    def close(self) -> None:
        os.close(self._fd)
