"""A process of its own that mounts an image which our service serves over FUSE (apart.py).

FILE, LOOP: FUSE is mounted at no place; its files are opened by way of its root's descriptor, EROFS
is mounted on them or on loop devices over them, and when this process ends nothing of FUSE can be
seen any more; it ends with the image.  TREE: FUSE itself is mounted at the target.

usage: python -m nydus_fscache.transport.fuse.mount_image SERVICE_PID SHAPE FD TARGET FILE...
FD: of /dev/fuse, not mounted yet.  FILE: the bootstrap and the blobs, in the order of the device
table, or one that is all of them; none for TREE.  TARGET: empty to see only whether the kernel
takes it.  Prints ``mounted`` when FUSE is: from then on the service has to answer.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from nydus_fscache.errors import KernelRefused
from nydus_fscache.kernel.loop import open_loop
from nydus_fscache.kernel.mount import attach, create_erofs, create_fuse, create_fuse_tree
from nydus_fscache.transport import apart
from nydus_fscache.transport.fuse.connection import Shape

MOUNTED = b"mounted\n"


def mount_apart(
    shape: Shape, device: int, target: str, names: list[str], on_mounted: Callable[[], object]
) -> None:
    """``on_mounted``: called when FUSE is mounted, and has to return when it is served."""
    words = [shape.value, str(device), target, *names]
    process = apart.ProcessApart(__name__, words, [device])
    out = process.process.stdout
    assert out is not None
    said = os.read(out.fileno(), len(MOUNTED))
    if said == MOUNTED:  # else it says why not, or has ended
        try:
            on_mounted()
        except BaseException:
            process.process.kill()
            process.process.communicate()
            raise
    process.wait("the mount of the image", said)


def _mount(words: list[str]) -> None:
    shape, device, target, *names = words
    create = create_fuse_tree if shape == Shape.TREE.value else create_fuse
    root = create(int(device))
    os.close(int(device))  # whoever holds it keeps readers waiting when the service is gone
    os.write(1, MOUNTED)
    if shape == Shape.TREE.value:
        mount = root
        _await_service(root)
    else:
        files = [_open_served(name, root) for name in names]
        sources = [f"/proc/self/fd/{file}" for file in files]
        if shape == Shape.LOOP.value:  # open until EROFS has them: each goes with its last user
            loops = [open_loop(file, name) for file, name in zip(files, names, strict=True)]
            sources = [path for _, path in loops]
        mount = create_erofs([("source", sources[0]), *(("device", s) for s in sources[1:])])
    if target:
        attach(mount, Path(target))


def _await_service(root: int) -> None:
    """Until it can be read: a mount that is there is ready."""
    try:
        os.fstat(root)
    except OSError as e:
        raise _not_served(e) from e


def _open_served(name: str, root: int) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
    except OSError as e:
        raise _not_served(e) from e


def _not_served(error: OSError) -> KernelRefused:
    return KernelRefused(
        f"the image cannot be read over FUSE: {error.strerror}", hint="see the daemon's log"
    )


if __name__ == "__main__":
    sys.exit(apart.run(_mount))
