"""Has this kernel cachefiles on-demand, and is its device free?  Source: kernel-transports 5.2."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from nydus_fscache.errors import FscacheError
from nydus_fscache.kernel.mount import erofs_has_option
from nydus_fscache.kernel.probe import NEED_ROOT, Finding

_CACHEFILES = Path("/dev/cachefiles")


_NAME = "cachefiles"
_REMEDY = (
    "use Linux 5.19 to 7.0 with CONFIG_CACHEFILES_ONDEMAND and CONFIG_EROFS_FS_ONDEMAND "
    "(modprobe cachefiles)"
)


def missing() -> Finding | None:
    """What the kernel lacks of on-demand mode, whoever has the device."""
    if not _CACHEFILES.exists():
        return Finding(_NAME, False, f"there is no {_CACHEFILES}", _REMEDY)
    with contextlib.suppress(OSError):  # a kernel without symbols has to be tried
        symbols = Path("/proc/kallsyms").read_text()
        if symbols and "cachefiles_ondemand_copen" not in symbols:
            return Finding(_NAME, False, "cachefiles was built without on-demand mode", _REMEDY)
    try:
        if not erofs_has_option("fsid"):
            return Finding(_NAME, False, "EROFS was built without on-demand mode", _REMEDY)
    except FscacheError as e:
        return Finding(_NAME, False, str(e), e.hint or _REMEDY)
    return None


def cachefiles(_root: Path) -> Finding:
    """On-demand mode in both halves, cachefiles and EROFS, and a device that is free."""
    if (lacks := missing()) is not None:
        return lacks
    try:
        os.close(os.open(_CACHEFILES, os.O_RDWR | os.O_CLOEXEC))
    except OSError as e:
        if e.errno == errno.EBUSY:
            busy = f"another daemon has {_CACHEFILES}, and the kernel allows one"
            return Finding(_NAME, False, busy, "stop it (nydusd, cachefilesd, another --root)")
        return Finding(_NAME, False, f"cannot open {_CACHEFILES}: {e.strerror}", NEED_ROOT)
    return Finding(_NAME, True, "on-demand mode works")
