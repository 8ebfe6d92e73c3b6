"""What a process and its descendants take of memory and of the disk, while they run."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path


def family(root: int) -> list[int]:
    """A process and its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                text = (entry / "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(text[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += parents.get(pid, [])
    return found


def memory_of(pids: list[int]) -> int:
    """Bytes that are theirs alone or their share of (PSS)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(text.partition("\nPss:")[2].split()[0]) * 1024
    return total


def disk_of(pids: list[int], directory: Path) -> int:
    """Bytes of files below ``directory``, unnamed ones that a process holds included."""
    seen: dict[tuple[int, int], int] = {}
    for top, _, files in os.walk(directory):
        for name in files:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(top, name))
                seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    for pid in pids:
        with contextlib.suppress(OSError):
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(fd).startswith(str(directory)):
                        status = os.stat(fd)
                        seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


@contextlib.contextmanager
def watched(process: subprocess.Popen[bytes], directory: Path) -> Iterator[dict[str, int]]:
    """The most of both while the block runs."""
    most = {"memory": 0, "disk": 0}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            pids = family(process.pid)
            most["memory"] = max(most["memory"], memory_of(pids))
            most["disk"] = max(most["disk"], disk_of(pids, directory))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()
