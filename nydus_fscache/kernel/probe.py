"""What this kernel and machine offer, found by trying; nothing stays behind.

Guarantees: every wait ends, whatever the kernel does; probe files have no name,
so that even SIGKILL leaves none.  Source of the probes: reference
kernel-transports 5.2.  A version number is never trusted: distributions carry
later fixes and leave features out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import select
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nydus_fscache.errors import CacheDirError, FscacheError, KernelRefused, NotPrivileged
from nydus_fscache.kernel import syscalls as kernel
from rafs_v6.format import erofs

TRANSPORTS = ("cachefiles", "fanotify")  # cachefiles first: without a daemon it fails closed

_CACHE_FILE_SYSTEMS = ("ext4", "xfs", "btrfs")
_CACHEFILES = Path("/dev/cachefiles")
_EVENT = struct.Struct("=IBBHQii")  # struct fanotify_event_metadata
_ANSWER = struct.Struct("=iI")  # struct fanotify_response
_FAN_ALLOW = 1
_EVENT_MAX = 256
_POLL_MS = 5
_TEST_PATIENCE_S = 2.0
_NEED_ROOT = "run it as root, outside of containers and user namespaces: sudo"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``remedy`` says what to do when it is not ``ok``."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """``reasons``: for each transport that was asked and does not work, why."""

    transport: str
    reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Report:
    findings: tuple[Finding, ...]
    transports: tuple[Finding, ...]
    choice: str | None  # what `auto` takes

    def document(self) -> dict[str, Any]:
        return {
            "kernel": platform.release(),
            "findings": [asdict(f) for f in self.findings],
            "transports": {f.name: asdict(f) for f in self.transports},
            "auto": self.choice,
        }


# -- what every transport needs --------------------------------------------------------------------


def privileges() -> Finding:
    if kernel.is_admin():
        return Finding("privileges", True, "CAP_SYS_ADMIN in the initial user namespace")
    who = "root of a user namespace, or without CAP_SYS_ADMIN" if os.geteuid() == 0 else "not root"
    return Finding("privileges", False, who, _NEED_ROOT)


def _existing(root: Path) -> Path:
    """The directory that ``root`` is, or will be made in."""
    return next(p for p in (root, *root.parents) if p.exists())


def cache_dir(root: Path) -> Finding:
    name = "cache directory"
    existing = _existing(root)
    if not existing.is_dir():
        return Finding(name, False, f"{existing} is no directory", "choose another with --root")
    file_system = kernel.fs_name(existing)
    if file_system not in _CACHE_FILE_SYSTEMS:
        detail = f"{root} is on {file_system}, which cannot hold the cache"
        return Finding(name, False, detail, "choose a directory on ext4, xfs or btrfs with --root")
    if os.statvfs(existing).f_flag & os.ST_RDONLY:
        return Finding(
            name, False, f"{root} is mounted read-only", "choose a writable one with --root"
        )
    free = shutil.disk_usage(existing).free
    return Finding(name, True, f"{root} is on {file_system}, {free >> 20} MiB free")


def erofs_driver() -> Finding:
    if kernel.has_erofs():
        return Finding("EROFS", True, "the kernel has the driver")
    remedy = "install the kernel's modules, or a kernel with CONFIG_EROFS_FS"
    return Finding("EROFS", False, "the kernel has no EROFS driver", remedy)


def io_uring() -> Finding:
    """Never a reason against a transport: there is a fall-back."""
    detail = "available" if kernel.has_io_uring() else "forbidden here; poll and read do instead"
    return Finding("io_uring", True, detail)


def require_cache_dir(root: Path) -> None:
    """Raises ``CacheDirError`` when cache files cannot live in ``root``."""
    finding = cache_dir(root)
    if not finding.ok:
        raise CacheDirError(finding.detail, hint=finding.remedy)


# -- fanotify --------------------------------------------------------------------------------------


def fanotify(root: Path) -> Finding:
    """Pre-content events on the root's file system, and EROFS over a file of it."""
    name, existing = "fanotify", _existing(root)
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
    with _nameless_file(directory, _tiny_image()) as fd:
        try:
            os.close(kernel.create_erofs([("source", f"/proc/self/fd/{fd}")]))
        except KernelRefused as e:
            raise KernelRefused(
                f"no file-backed EROFS: {e}",
                hint="use Linux 6.12 or later with CONFIG_EROFS_FS_BACKED_BY_FILE",
            ) from e


def _tiny_image() -> bytes:
    """The smallest EROFS image: an empty root directory at nid 128 (byte 4096)."""
    image = bytearray(2 * erofs.EROFS_BLOCK)
    super_block = struct.pack("<I8xBxH", erofs.EROFS_SUPER_MAGIC_V1, 12, 128)
    image[erofs.EROFS_SUPER_OFFSET : erofs.EROFS_SUPER_OFFSET + len(super_block)] = super_block
    struct.pack_into("<Q", image, erofs.EROFS_SUPER_OFFSET + 16, 1)
    nid = erofs.EROFS_BLOCK // erofs.EROFS_SLOTSIZE
    body = struct.pack("<4H4I2HI", 4, 0, 0o040755, 2, 27, 0, 0, 1, 0, 0, 0)
    dirents = erofs.DIRENT.pack(nid, 24, 2, 0) + erofs.DIRENT.pack(nid, 25, 2, 0) + b"..."
    image[erofs.EROFS_BLOCK : erofs.EROFS_BLOCK + len(body + dirents)] = body + dirents
    return bytes(image)


def deliver_event(directory: Path) -> None:
    """A read of a marked file must wait for our answer; raises ``KernelRefused`` if it does not.

    The reader is a thread, and ends in any case: closing the group, which nobody
    else holds, lets it through.
    """
    group = kernel.pre_content_group()
    done = threading.Event()
    try:
        with _nameless_file(directory, b"x") as fd:
            kernel.mark_add(group, fd)
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


# -- cachefiles ------------------------------------------------------------------------------------


def cachefiles(_root: Path) -> Finding:
    """On-demand mode in both halves, cachefiles and EROFS, and a device that is free."""
    name = "cachefiles"
    remedy = (
        "use Linux 5.19 to 7.0 with CONFIG_CACHEFILES_ONDEMAND and CONFIG_EROFS_FS_ONDEMAND "
        "(modprobe cachefiles)"
    )
    if not _CACHEFILES.exists():
        return Finding(name, False, f"there is no {_CACHEFILES}", remedy)
    with contextlib.suppress(OSError):  # a kernel without symbols has to be tried
        symbols = Path("/proc/kallsyms").read_text()
        if symbols and "cachefiles_ondemand_copen" not in symbols:
            return Finding(name, False, "cachefiles was built without on-demand mode", remedy)
    try:
        if not kernel.erofs_has_option("fsid"):
            return Finding(name, False, "EROFS was built without on-demand mode", remedy)
        os.close(os.open(_CACHEFILES, os.O_RDWR | os.O_CLOEXEC))
    except FscacheError as e:
        return Finding(name, False, str(e), e.hint or remedy)
    except OSError as e:
        if e.errno == errno.EBUSY:
            busy = f"another daemon has {_CACHEFILES}, and the kernel allows one"
            return Finding(name, False, busy, "stop it (nydusd, cachefilesd, another --root)")
        return Finding(name, False, f"cannot open {_CACHEFILES}: {e.strerror}", _NEED_ROOT)
    return Finding(name, True, "on-demand mode works")


# -- the choice ------------------------------------------------------------------------------------

_PROBES: Mapping[str, Callable[[Path], Finding]] = {"cachefiles": cachefiles, "fanotify": fanotify}


def examine(root: Path) -> Report:
    """Everything, for ``doctor``."""
    findings = (privileges(), cache_dir(root), erofs_driver(), io_uring())
    blocked = next((f for f in findings if not f.ok), None)
    transports = []
    for name in TRANSPORTS:
        finding = _PROBES[name](root)
        if blocked is not None and finding.ok:
            finding = Finding(name, False, f"{blocked.name}: {blocked.detail}", blocked.remedy)
        transports.append(finding)
    choice = next((f.name for f in transports if f.ok), None)
    return Report(findings, tuple(transports), choice)


def choose(root: Path, wanted: str = "auto") -> Choice:
    """The transport for ``wanted`` ("auto" or a name); only as many are probed as it takes.

    Raises ``NotPrivileged``, ``CacheDirError``, or ``KernelRefused`` with the reason
    and the remedy for each transport.
    """
    rights = privileges()
    if not rights.ok:
        raise NotPrivileged(rights.detail, hint=rights.remedy)
    require_cache_dir(root)
    driver = erofs_driver()
    if not driver.ok:
        raise KernelRefused(driver.detail, hint=driver.remedy)
    failed: list[Finding] = []
    for name in TRANSPORTS if wanted == "auto" else (wanted,):
        finding = _PROBES[name](root)
        if finding.ok:
            return Choice(name, {f.name: f.detail for f in failed})
        failed.append(finding)
    reasons = "; ".join(f"{f.name}: {f.detail}" for f in failed)
    remedies = ", or ".join(f.remedy for f in failed)
    what = "no transport works" if wanted == "auto" else "this transport does not work"
    raise KernelRefused(f"{what}: {reasons}", hint=remedies)
