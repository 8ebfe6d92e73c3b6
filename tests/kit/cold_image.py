"""An image whose program reads cold data for as long as a test wants, and says what was wrong."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FILES = 900
FILE_SIZE = 96 << 10
BUSYBOX = Path("/bin/busybox")
# Every file's name is its digest.  One that cannot be read, or has other bytes, is a line.
READ = (
    "n=0; for f in /data/*; do s=$(sha256sum < $f) || echo error $f; "
    'case "$s" in ${f##*/}*) n=$((n+1));; *) echo wrong $f;; esac; '
    "usleep 70000; done; echo read $n"
)


def create(base: Path) -> Path:
    """A directory with image.boot and blobs/, as golden images have."""
    if not BUSYBOX.exists():
        pytest.skip("NO busybox-static: containers that read cold data are not tested")
    tree, image = base / "tree", base / "cold"
    for name in ("bin", "data", "tmp", "proc", "sys", "dev", "etc"):
        (tree / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, tree / "bin" / "busybox")
    for applet in ("sh", "sha256sum", "usleep", "cat", "ls", "touch", "head", "sleep"):
        (tree / "bin" / applet).symlink_to("busybox")
    marked = tree / "etc" / "marked"
    marked.write_text("marked\n")
    os.setxattr(marked, "user.mark", b"here")
    for _ in range(FILES):
        data = os.urandom(FILE_SIZE)
        (tree / "data" / hashlib.sha256(data).hexdigest()).write_bytes(data)
    (image / "blobs").mkdir(parents=True)
    subprocess.run(
        [
            Path(sys.executable).with_name("nydus-image"), "create", tree, "--bootstrap",
            image / "image.boot", "--blob-dir", image / "blobs", "--chunk-size", "0x20000",
        ],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    shutil.rmtree(tree)
    return image
