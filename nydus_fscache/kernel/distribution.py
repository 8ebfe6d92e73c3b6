"""What to install or load on the distributions whose kernels lack something, by their own names.

Source: configurations of their kernels, as read in 2026 (reference stock-kernels 1); a hint, since
what is there is found by trying.
"""

from __future__ import annotations

import os

_NO_EROFS = "its kernel is built without EROFS: images are served by fuse-tree"
# by ID of os-release; {release}: of the running kernel
_EROFS = {
    "debian": "apt install linux-image-cloud-amd64 (or linux-image-amd64), then modprobe erofs",
    "ubuntu": "apt install linux-modules-extra-{release}, then modprobe erofs",
    "fedora": "dnf install kernel-modules-core, then modprobe erofs",
    "rhel": "dnf install kernel-modules-extra, then modprobe erofs; up to RHEL 9.3 " + _NO_EROFS,
    "ol": _NO_EROFS,
    "amzn": "dnf upgrade kernel (Amazon Linux 2023); on Amazon Linux 2 " + _NO_EROFS,
    "cos": _NO_EROFS,
    "flatcar": _NO_EROFS,
}
_OTHERS = "install the kernel's modules, or a kernel with CONFIG_EROFS_FS"


def erofs_remedy() -> str:
    """Where the driver is missing."""
    import platform  # noqa: PLC0415 - seldom needed

    try:
        told = platform.freedesktop_os_release()
    except OSError:
        return _OTHERS
    names = [told.get("ID", ""), *told.get("ID_LIKE", "").split()]
    found = next((_EROFS[name] for name in names if name in _EROFS), _OTHERS)
    return found.format(release=os.uname().release)
