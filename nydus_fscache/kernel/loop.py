"""Loop devices: a read-only block device over a file, which goes with its last user.

Guarantees: a process that is killed leaves none.  Source: linux/loop.h; LOOP_CONFIGURE is of
Linux 5.8.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from nydus_fscache.errors import KernelRefused

CONTROL = "/dev/loop-control"
LOOP_CTL_GET_FREE, LOOP_CONFIGURE = 0x4C82, 0x4C0A
LO_FLAGS_READ_ONLY, LO_FLAGS_AUTOCLEAR = 1, 4
# struct loop_config: fd, block_size, struct loop_info64, 64 bytes; of the info only the flags and
# the name are set
_CONFIG = struct.Struct("=II 52x I 64s 112x 64x")
_TRIES = 64  # others look for a free one too


def open_loop(file: int, name: str) -> tuple[int, str]:
    """(descriptor, path) of a device over the file; it is free again when the last descriptor and
    the last mount of it have gone.  Raises ``KernelRefused``."""
    flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR
    config = _CONFIG.pack(file, 0, flags, name.encode()[:63])
    try:
        control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except OSError as e:
        detail = f"no loop devices: {CONTROL}: {e.strerror}"
        raise KernelRefused(detail, hint="modprobe loop") from e
    try:
        for _ in range(_TRIES):
            path = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
            try:
                device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as e:
                if e.errno != errno.ENXIO:  # another had it meanwhile, and lets it go
                    raise
                continue
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, config)
                return device, path
            except OSError as e:
                os.close(device)
                if e.errno != errno.EBUSY:
                    raise
    except OSError as e:
        raise KernelRefused(f"no loop device: {e.strerror}", hint="see dmesg") from e
    finally:
        os.close(control)
    raise KernelRefused("no loop device is free", hint="see losetup --list")
