"""What the kernel still has of an image that an earlier service had mounted."""

from __future__ import annotations

import logging
from pathlib import Path

from nydus_fscache.errors import MountpointError
from nydus_fscache.handover.state import Binding
from nydus_fscache.kernel import mountinfo
from nydus_fscache.kernel import syscalls as kernel
from nydus_fscache.transport.cachefiles.kernel_cache import is_held

log = logging.getLogger("service")


def is_mounted(binding: Binding) -> bool:
    return any(m.mountpoint == binding.mountpoint for m in mountinfo.mounts("erofs"))


def is_still_there(binding: Binding, images: Path) -> bool:
    """Can anybody read it?  ``images``: where the bootstraps are.

    What the user mounts counts always: we are not told of its umount.
    """
    return not binding.mountpoint or is_mounted(binding) or _outlived_umount(binding, images)


def _outlived_umount(binding: Binding, images: Path) -> bool:
    """Is the superblock still there without its mount (overlay, lazy umount)?"""
    if binding.transport == "cachefiles":
        return is_held(binding.domain or binding.fsid, binding.fsid, ())
    return not kernel.try_write_lease(images / f"{binding.digest}.boot")


def unmount_useless(target: Path) -> None:
    """Service and keeper died together: the kernel let readers see holes as zeros since.

    Its cached pages may be wrong and its files raise no events any more, so that
    mount is of no use; a new one takes its place.
    """
    log.error(
        "%s: keeper and service were lost together; reads since then may have shown zeros; "
        "mounting it again", target,
    )  # fmt: skip
    try:
        kernel.umount(target)
    except MountpointError:
        kernel.umount(target, lazy=True)
        log.error("%s was in use: restart the programs that have files of it open", target)
