"""A batch holds the chunks of several files: one that does not match costs its own file alone."""

from __future__ import annotations

import errno
import os

from built import build_image
from rig import Rig, read_errno

import rafs_v6

FILES = 12


def test_one_bad_digest_is_one_file(rig: Rig) -> None:
    tree, blobs, boot = rig.base / "tree", rig.base / "blobs", rig.base / "image.boot"
    blobs.mkdir()
    contents = {f"f{number:02}": os.urandom(9000 + number) for number in range(FILES)}
    options = ("--type", "dir-rafs", "--batch-size", "0x100000")
    build_image(tree, contents, *options, "--bootstrap", boot, "--blob-dir", blobs)
    victim = "f03"
    with rafs_v6.open(boot) as image:
        (ref,) = image.bootstrap.chunks(image.lookup(f"/{victim}"))
        at = next(
            at for at, record in image.bootstrap.chunk_records()
            if record.index == ref.chunk_index
        )  # fmt: skip
    with boot.open("r+b") as file:
        file.seek(at)
        first = file.read(1)[0]
        file.seek(at)
        file.write(bytes([first ^ 0xFF]))
    mount = rig.mount(boot, blobs)
    assert read_errno(mount / victim) == errno.EIO
    for name, data in contents.items():
        if name != victim:
            assert (mount / name).read_bytes() == data, name
    assert read_errno(mount / victim) == errno.EIO, "and it stays so"
    rig.run("umount", mount)

