"""Does this kernel mount EROFS on a file of FUSE?  Found by serving it the smallest image.

Guarantees: every wait ends, nothing stays behind.  Source: reference stock-kernels 7.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from nydus_fscache.cache.presence import PAGE, PageMap
from nydus_fscache.core.core import Core
from nydus_fscache.errors import FscacheError, KernelRefused
from nydus_fscache.kernel.probe import Finding
from nydus_fscache.transport.fuse.connection import open_device
from nydus_fscache.transport.fuse.mount_image import mount_apart
from nydus_fscache.transport.tiny_image import tiny_image

_SLOTS = 16
_OBJECT = _CONNECTION = 1


def fuse(_root: Path) -> Finding:
    """EROFS over a FUSE file of ours."""
    try:
        mount_from_fuse(tiny_image())
    except FscacheError as e:
        return Finding("fuse", False, str(e), e.hint or "see dmesg")
    except OSError as e:
        return Finding("fuse", False, f"probe: {e.strerror}", "see dmesg")
    return Finding("fuse", True, "EROFS can be mounted on files of FUSE")


def mount_from_fuse(image: bytes) -> None:
    """Raises ``KernelRefused``."""
    memory = mmap.mmap(-1, Core.journal_size(_SLOTS))
    Core.format_journal(memory, _SLOTS)
    core, pages = Core(memory), PageMap(len(image))
    pages.set(0, -(-len(image) // PAGE))
    device, file = open_device(), os.memfd_create("nydus-fscache-probe", os.MFD_CLOEXEC)
    try:
        os.write(file, image)
        core.add_object(_OBJECT, 0, 0, file, len(image), pages.memory)
        core.start()
        try:
            mount_apart(
                device, "", [str(_OBJECT)], lambda: core.attach_fuse(_CONNECTION, device)
            )
        except KernelRefused as e:
            raise KernelRefused(
                f"no EROFS on FUSE: {e}",
                hint="use Linux 6.12 or later with CONFIG_EROFS_FS_BACKED_BY_FILE",
            ) from e
    finally:
        core.close()
        os.close(device)
        os.close(file)
        pages.close()
        memory.close()
