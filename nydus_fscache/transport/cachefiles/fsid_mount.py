"""A process of its own that mounts an image which our service serves over cachefiles.

Why not the service itself: until an OPEN is answered, the mount waits in the
kernel where SIGKILL does not reach it.  A service that is killed then would
never be gone: its descriptors stay open, the keeper sees no death, and nobody
answers.  This process has none of them, and ends with the service.

usage: python -m nydus_fscache.transport.cachefiles.fsid_mount SERVICE_PID TARGET FSID DOMAIN
On failure prints the error as JSON, for ``mount_apart`` to raise, and exits with 1.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from nydus_fscache import errors
from nydus_fscache.errors import FscacheError, KernelRefused
from nydus_fscache.kernel.mount import mount_erofs_fsid

PATIENCE_S = 100.0
_PR_SET_PDEATHSIG = 1


def mount_apart(target: Path, fsid: str, domain: str) -> None:
    """Raises what ``mount_erofs_fsid`` does, or ``KernelRefused`` when it does not end."""
    words = [str(os.getpid()), str(target), fsid, domain]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    try:
        out, _ = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()  # takes effect when the kernel has its answer
        raise KernelRefused(
            f"the mount of {fsid} does not end", hint="see the daemon's log and dmesg"
        ) from None
    if process.returncode == 0:
        return
    with contextlib.suppress(ValueError):
        document = json.loads(out)
        kind = getattr(errors, document["kind"])
        raise kind(document["message"], hint=document["hint"])
    raise KernelRefused(f"the mount of {fsid} failed", hint="see the daemon's log")


def main() -> int:
    parent, target, fsid, domain = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before we asked to be told
        return 1
    try:
        mount_erofs_fsid(Path(target), fsid, domain)
    except FscacheError as e:
        print(json.dumps({"kind": type(e).__name__, "message": str(e), "hint": e.hint}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
