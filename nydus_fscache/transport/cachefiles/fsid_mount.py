"""A process of its own that mounts an image which our service serves over cachefiles: until an
OPEN is answered, the mount waits in the kernel where SIGKILL does not reach it (apart.py).

usage: python -m nydus_fscache.transport.cachefiles.fsid_mount SERVICE_PID TARGET FSID DOMAIN
"""

from __future__ import annotations

import sys
from pathlib import Path

from nydus_fscache.kernel.mount import mount_erofs_fsid
from nydus_fscache.transport import apart


def mount_apart(target: Path, fsid: str, domain: str) -> None:
    """Raises what ``mount_erofs_fsid`` does, or ``KernelRefused`` when it does not end."""
    process = apart.ProcessApart(__name__, [str(target), fsid, domain], [])
    process.wait(f"the mount of {fsid}")


def _mount(words: list[str]) -> None:
    target, fsid, domain = words
    mount_erofs_fsid(Path(target), fsid, domain)


if __name__ == "__main__":
    sys.exit(apart.run(_mount))
