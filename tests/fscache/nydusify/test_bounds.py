"""What a conversion takes of memory and of the disk, whatever the image."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from oci_kit import OCI_TAR, Entry, Layer, Nydusify, layer_tar, push_image
from servers import Pusher

MIB = 1 << 20


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


def test_memory_and_disk_do_not_grow_with_the_layers(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    layers = [
        Layer(layer_tar([Entry(f"f{n}", os.urandom(100 * MIB))]), OCI_TAR) for n in range(2)
    ]
    push_image(push, "v1", layers)
    scratch = nydusify.directory / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        nydusify.argv("convert", "--source", f"{registry}/{repo}:v1", "--target-suffix", "-n"),
        cwd=nydusify.directory, env=nydusify.environment({"TMPDIR": str(scratch)}),
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        with watched(process, nydusify.directory) as most:
            _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, said.decode()
    assert 20 * MIB < most["memory"] < 200 * MIB
    assert most["disk"] < 20 * MIB
