"""A process of its own that mounts an image which our service serves over FUSE (apart.py).

FUSE is mounted at no place: its files are opened by way of its root's descriptor, EROFS is mounted
on them, and when this process ends nothing of FUSE can be seen any more; it ends with the image.

usage: python -m nydus_fscache.transport.fuse.mount_image SERVICE_PID FD TARGET BOOTSTRAP BLOB...
FD: of /dev/fuse, not mounted yet.  BOOTSTRAP, BLOB: names of files, as in the device table.
TARGET: empty to see only whether EROFS takes the bootstrap.  Prints ``mounted`` when FUSE is:
from then on the service has to answer.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from nydus_fscache.errors import KernelRefused
from nydus_fscache.kernel.mount import attach, create_erofs, create_fuse
from nydus_fscache.transport import apart

MOUNTED = b"mounted\n"


def mount_apart(
    device: int, target: str, names: list[str], on_mounted: Callable[[], object]
) -> None:
    """``on_mounted``: called when FUSE is mounted, and has to return when it is served."""
    process = apart.ProcessApart(__name__, [str(device), target, *names], [device])
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
    device, target, *names = words
    root = create_fuse(int(device))
    os.close(int(device))  # whoever holds it keeps readers waiting when the service is gone
    os.write(1, MOUNTED)
    try:
        files = [os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root) for name in names]
    except OSError as e:
        raise KernelRefused(
            f"a file of the image cannot be opened over FUSE: {e.strerror}",
            hint="see the daemon's log",
        ) from e
    options = [("source", f"/proc/self/fd/{files[0]}")]
    options += [("device", f"/proc/self/fd/{fd}") for fd in files[1:]]
    mount = create_erofs(options)
    if target:
        attach(mount, Path(target))


if __name__ == "__main__":
    sys.exit(apart.run(_mount))
