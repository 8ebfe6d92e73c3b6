"""A process of its own that unmounts what is on a block device that our service serves (apart.py):
umount(2) waits there for reads that are under way, and cannot be killed until they are answered.

usage: python -m nydus_fscache.transport.umount SERVICE_PID TARGET LAZY
"""

from __future__ import annotations

import sys
from pathlib import Path

from nydus_fscache.kernel.mount import umount
from nydus_fscache.transport import apart


def umount_apart(target: Path, *, lazy: bool) -> None:
    """As ``kernel.mount.umount``; raises ``KernelRefused`` when it does not end."""
    process = apart.ProcessApart(__name__, [str(target), "lazy" if lazy else ""], [])
    process.wait(f"the umount of {target}")


def _umount(words: list[str]) -> None:
    target, lazy = words
    umount(Path(target), lazy=bool(lazy))


if __name__ == "__main__":
    sys.exit(apart.run(_umount))
