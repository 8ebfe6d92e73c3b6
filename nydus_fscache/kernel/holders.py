"""Who keeps a file system alive: mounts here and in other namespaces, processes with open files.

For messages only: what cannot be seen (another user's process, without CAP_SYS_PTRACE) is left
out, and nothing here waits for a file system.

Source: proc_pid_mountinfo(5), proc_pid_fd(5), proc_pid_maps(5).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from nydus_fscache.kernel import mountinfo

_NAMED = 4  # of each kind, in a message


def of_device(device: str) -> list[str]:
    """Phrases for a message; ``device``: "major:minor"."""
    places = [m.mountpoint for m in mountinfo.mounts() if m.device == device]
    found = [f"mounted at {point}" for point in places[:_NAMED]]
    return found + users_of(device)


def users_of(device: str) -> list[str]:
    """The same without mounts of this namespace."""
    found = []
    if elsewhere := _pids_elsewhere(device):
        found.append(f"mounted in another mount namespace, of {_named(elsewhere)}")
    if users := [pid for pid in _pids() if _has_open(pid, device)]:
        found.append(f"open files of {_named(users)}")
    return found


def _named(pids: list[int]) -> str:
    text = ", ".join(f"{pid} ({_program(pid)})" for pid in pids[:_NAMED])
    more = len(pids) - _NAMED
    return f"process {text}" + (f" and {more} more" if more > 0 else "")


def _program(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_bytes().decode("utf-8", "replace").strip()
    return "?"


def _pids() -> Iterator[int]:
    yield from sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _pids_elsewhere(device: str) -> list[int]:
    ours = {m.id for m in mountinfo.mounts()}
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError, ValueError):
            there = mountinfo.mounts(pid=pid)
            # a mount is in one namespace only
            if any(m.device == device and m.id not in ours for m in there):
                found.append(pid)
    return found


def _has_open(pid: int, device: str) -> bool:
    base = Path(f"/proc/{pid}")
    with contextlib.suppress(OSError):
        links = [base / "cwd", base / "root", *(base / "fd").iterdir()]
        for link in links:
            with contextlib.suppress(OSError):
                if mountinfo.device_of(link) == device:
                    return True
        major, _, minor = device.partition(":")
        mapped = f" {int(major):02x}:{int(minor):02x} "
        return mapped in (base / "maps").read_text(errors="replace")
    return False
