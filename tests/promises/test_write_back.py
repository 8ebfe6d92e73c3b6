"""A disk that takes writes and cannot keep them: right bytes or an error, and all is well later."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from built import build_image
from rig import Rig, regular_files

MIB = 1 << 20
FILES = 24


@pytest.fixture
def thin(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of 3 x FILES MiB on a loop device, whose own disk holds the half of FILES."""
    if not shutil.which("mkfs.ext4"):
        pytest.skip("NO mkfs.ext4: no disk that loses writes (apt-get install e2fsprogs)")
    below, disk = tmp_path / "below", tmp_path / "disk"
    below.mkdir()
    disk.mkdir()
    mounted: list[Path] = []
    try:
        size = f"size={FILES // 2 + 8}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "below", below], check=True)
        mounted.append(below)
        with (below / "fs").open("wb") as f:
            f.truncate(3 * FILES * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", below / "fs"], check=True)
        subprocess.run(["mount", "-o", "loop", below / "fs", disk], check=True)
        mounted.append(disk)
        yield disk
    finally:
        for path in reversed(mounted):
            subprocess.run(["umount", "-l", path], check=False)


def _read(mount: Path, contents: dict[str, bytes]) -> set[int]:
    """The errors of reading all files; what is read is right."""
    errors: set[int] = set()
    for path in regular_files(mount):
        try:
            assert path.read_bytes() == contents[path.name], f"{path.name} reads wrong"
        except OSError as e:
            errors.add(e.errno or 0)
    return errors


def test_a_write_back_that_fails_shows_no_wrong_byte(tmp_path: Path, thin: Path) -> None:
    contents = {f"f{i:02}": os.urandom(MIB) for i in range(FILES)}
    out = tmp_path / "image"
    out.mkdir()
    build_image(tmp_path / "tree", contents, "-B", out / "boot", "-D", out)
    rig = Rig(tmp_path)
    rig.root = thin / "root"
    try:
        mount = rig.mount(out / "boot", out, "m", "--prefetch", "all")
        until = time.monotonic() + 20
        while "writing back" not in (error := rig.status()["blobs"][0]["last_error"]):
            assert time.monotonic() < until, f"the disk took all of it ({error})"
            time.sleep(0.1)
        for path in (rig.root / "cache").iterdir():  # as when memory is short
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
        assert _read(mount, contents) <= {errno.EIO, errno.ENOSPC}
        assert "are lost: writing back" in rig.log()
    finally:
        rig.clean()
