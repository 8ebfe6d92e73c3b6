"""What this kernel and machine offer to every transport, found by trying; nothing stays behind.

Guarantees: every wait ends, whatever the kernel does.  A version number is never
trusted: distributions carry later fixes and leave features out.  Each transport
has a probe of its own (transport/*/probe.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nydus_fscache.errors import CacheDirError
from nydus_fscache.kernel.distribution import erofs_remedy
from nydus_fscache.kernel.mount import has_erofs
from nydus_fscache.kernel.syscalls import fs_name, has_io_uring, is_admin
from rafs_v6.values import dataclass

_CACHE_FILE_SYSTEMS = ("ext4", "xfs", "btrfs")
_LEAST_ROOM = 256 << 10  # bytes: what a start writes, and some more
NEED_ROOT = "run it as root, outside of containers and user namespaces: sudo"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``remedy`` says what to do when it is not ``ok``."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Of ``doctor``."""

    findings: tuple[Finding, ...]
    transports: tuple[Finding, ...]
    choice: str | None  # what `auto` takes

    def document(self) -> dict[str, Any]:
        return {
            "kernel": os.uname().release,
            "findings": [asdict(f) for f in self.findings],
            "transports": {f.name: asdict(f) for f in self.transports},
            "auto": self.choice,
        }


# -- what every transport needs --------------------------------------------------------------------


def privileges() -> Finding:
    if is_admin():
        return Finding("privileges", True, "CAP_SYS_ADMIN in the initial user namespace")
    who = "root of a user namespace, or without CAP_SYS_ADMIN" if os.geteuid() == 0 else "not root"
    return Finding("privileges", False, who, NEED_ROOT)


def existing_parent(root: Path) -> Path:
    """The directory that ``root`` is, or will be made in."""
    return next(p for p in (root, *root.parents) if p.exists())


def cache_dir(root: Path) -> Finding:
    name = "cache directory"
    existing = existing_parent(root)
    if not existing.is_dir():
        return Finding(name, False, f"{existing} is no directory", "choose another with --root")
    file_system = fs_name(existing)
    if file_system not in _CACHE_FILE_SYSTEMS:
        detail = f"{root} is on {file_system}, which cannot hold the cache"
        return Finding(name, False, detail, "choose a directory on ext4, xfs or btrfs with --root")
    if os.statvfs(existing).f_flag & os.ST_RDONLY:
        return Finding(
            name, False, f"{root} is mounted read-only", "choose a writable one with --root"
        )
    disk = os.statvfs(existing)
    free = disk.f_bavail * disk.f_frsize
    if free < _LEAST_ROOM:
        detail = f"no space left on the disk of {root}"
        return Finding(name, False, detail, "free some space, or choose another --root")
    return Finding(name, True, f"{root} is on {file_system}, {free >> 20} MiB free")


def erofs_driver() -> Finding:
    if has_erofs():
        return Finding("EROFS", True, "the kernel has the driver")
    return Finding("EROFS", False, "the kernel has no EROFS driver", erofs_remedy())


def io_uring() -> Finding:
    """Never a reason against a transport: there is a fall-back."""
    detail = "available" if has_io_uring() else "forbidden here; poll and read do instead"
    return Finding("io_uring", True, detail)


def require_cache_dir(root: Path) -> None:
    """Raises ``CacheDirError`` when cache files cannot live in ``root``."""
    finding = cache_dir(root)
    if not finding.ok:
        raise CacheDirError(finding.detail, hint=finding.remedy)


def examine(
    root: Path, probes: Mapping[str, Callable[[Path], Finding]], without_erofs: frozenset[str]
) -> Report:
    """``probes``: of transports by name, in the order in which ``auto`` takes them; those in
    ``without_erofs`` work without the driver."""
    driver = erofs_driver()
    findings = (privileges(), cache_dir(root), driver, io_uring())
    transports = []
    for name, probe in probes.items():
        finding = probe(root)
        needed = [f for f in findings if f is not driver or name not in without_erofs]
        blocked = next((f for f in needed if not f.ok), None)
        if blocked is not None and finding.ok:
            finding = Finding(name, False, f"{blocked.name}: {blocked.detail}", blocked.remedy)
        transports.append(finding)
    choice = next((f.name for f in transports if f.ok), None)
    return Report(findings, tuple(transports), choice)
