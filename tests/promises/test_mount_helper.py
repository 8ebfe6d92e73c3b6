"""``mount -t erofs.nydus`` mounts an image, by mount(8) itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rig import Rig, regular_files


def test_mount_8_finds_it(rig: Rig, golden: Path) -> None:
    """As a user does it; the helper is in a directory of ours that is laid over /sbin."""
    image, point = golden / "images" / "one-lz4", rig.mountpoint()
    helper = rig.base / "mount.erofs.nydus"
    program = f'exec {sys.executable} -m nydus_fscache.cli.mount_helper "$@"'
    helper.write_text(f"#!/bin/sh\n{program}\n")
    helper.chmod(0o755)
    place = Path("/sbin/mount.erofs.nydus")
    if place.exists():
        pytest.skip(f"{place} IS INSTALLED here: the package's own test covers it")
    place.symlink_to(helper)
    try:
        options = f"root={rig.root},blob_dir={image / 'blobs'}"
        command = ["mount", "-t", "erofs.nydus", image / "image.boot", point, "-o", options]
        subprocess.run(command, check=True, env={**os.environ, **rig.environment})
        assert os.path.ismount(point)
        assert all(file.read_bytes() is not None for file in regular_files(point))
        wrong = subprocess.run(
            [*command[:-1], "blob_dirr=/x"], capture_output=True, text=True, check=False
        )
        assert wrong.returncode == 2
        assert "'blob_dirr=/x' is not an option" in wrong.stderr
        subprocess.run(["umount", point], check=True)
    finally:
        place.unlink()
