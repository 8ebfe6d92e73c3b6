"""Which shapes of FUSE does this kernel take?  Found by serving it the smallest image.

Guarantees: every wait ends, nothing stays behind.  Source: reference stock-kernels 7.
"""

from __future__ import annotations

import mmap
import os

from nydus_fscache.cache.presence import PAGE, PageMap
from nydus_fscache.core.core import Core
from nydus_fscache.errors import FscacheError, KernelRefused
from nydus_fscache.kernel.probe import Finding
from nydus_fscache.transport.fuse.connection import Shape, open_device
from nydus_fscache.transport.fuse.mount_image import mount_apart
from nydus_fscache.transport.tiny_image import tiny_image

_SLOTS = 16
_OBJECT = _CONNECTION = 1
_WORKS = {
    Shape.FILE: "EROFS can be mounted on files of FUSE",
    Shape.LOOP: "EROFS can be mounted on loop devices on files of FUSE",
    Shape.TREE: "FUSE can be mounted; it needs no EROFS",
}
_NEEDS = {
    Shape.FILE: "use Linux 6.12 or later with CONFIG_EROFS_FS_BACKED_BY_FILE",
    Shape.LOOP: "use Linux 5.15 or later with EROFS; modprobe loop",
    Shape.TREE: "modprobe fuse",
}


def probe(shape: Shape) -> Finding:
    try:
        mount_from_fuse(shape, tiny_image())
    except FscacheError as e:
        return Finding(shape.value, False, str(e), e.hint or "see dmesg")
    except OSError as e:
        return Finding(shape.value, False, f"probe: {e.strerror}", "see dmesg")
    return Finding(shape.value, True, _WORKS[shape])


def mount_from_fuse(shape: Shape, image: bytes) -> None:
    """Raises ``KernelRefused``."""
    memory = mmap.mmap(-1, Core.journal_size(_SLOTS))
    Core.format_journal(memory, _SLOTS)
    core, pages = Core(memory), PageMap(len(image))
    pages.set(0, -(-len(image) // PAGE))
    device, file = open_device(), os.memfd_create("nydus-fscache-probe", os.MFD_CLOEXEC)

    def serve() -> None:
        if shape is Shape.TREE:
            core.attach_fuse_tree(_CONNECTION, device, image, [])
        else:
            core.attach_fuse(_CONNECTION, device)

    try:
        os.write(file, image)
        core.add_object(_OBJECT, 0, 0, file, len(image), pages.memory)
        core.start()
        try:
            mount_apart(shape, device, "", [str(_OBJECT)], serve)
        except KernelRefused as e:
            raise KernelRefused(f"no {shape.value}: {e}", hint=_NEEDS[shape]) from e
    finally:
        core.close()
        os.close(device)
        os.close(file)
        pages.close()
        memory.close()
