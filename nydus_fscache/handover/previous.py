"""What the kernel still has of an image that an earlier service had mounted."""

from __future__ import annotations

import logging
from pathlib import Path

from nydus_fscache.errors import MountpointError
from nydus_fscache.image.binding import Binding
from nydus_fscache.kernel import mountinfo
from nydus_fscache.kernel.mount import umount
from nydus_fscache.transport.registry import Transports

log = logging.getLogger("service")


def is_mounted(binding: Binding) -> bool:
    return any(m.mountpoint == binding.mountpoint for m in mountinfo.mounts("erofs"))


def is_still_there(binding: Binding, transports: Transports) -> bool:
    """Can anybody read it, maybe without its mount (overlay, lazy umount)?

    An image that the user mounts counts always: we are not told of its umount.
    """
    return not binding.mountpoint or is_mounted(binding) or transports.holds(binding)


def unmount_useless(target: Path) -> None:
    """Service and keeper were lost together: see ``Dialect.is_useless``; a new mount takes the
    place of this one."""
    log.error(
        "%s: keeper and service were lost together; reads since then may have shown zeros; "
        "mounting it again", target,
    )  # fmt: skip
    try:
        umount(target)
    except MountpointError:
        umount(target, lazy=True)
        log.error("%s was in use: restart the programs that have files of it open", target)
