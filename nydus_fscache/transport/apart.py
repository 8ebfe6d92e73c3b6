"""Processes of their own that mount, while the service serves what they wait for.

A thread that waits in the kernel for its own process's answer cannot be killed: a service that is
killed then would never be gone, its descriptors would stay open, and the keeper would see no death.
Such a process holds nothing of the service's, and ends with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Collection

from nydus_fscache import errors
from nydus_fscache.errors import FscacheError, KernelRefused

PATIENCE_S = 100.0
_PR_SET_PDEATHSIG = 1


class ProcessApart:
    """A module that calls ``run`` below, with its standard output to be read."""

    def __init__(self, module: str, words: Collection[str], inherited: Collection[int]) -> None:
        import subprocess  # noqa: PLC0415 - start-up time

        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(os.getpid()), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            pass_fds=list(inherited),
        )

    def wait(self, what: str, said: bytes = b"") -> None:
        """Raises the error that it ended with, or ``KernelRefused``.  ``what``: for the message;
        ``said``: read of its output already."""
        import subprocess  # noqa: PLC0415 - start-up time

        try:
            out, _ = self.process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()  # takes effect when the kernel has its answer
            raise KernelRefused(
                f"{what} does not end", hint="see the daemon's log and dmesg"
            ) from None
        if self.process.returncode == 0:
            return
        with contextlib.suppress(ValueError, IndexError):
            document = json.loads((said + out).splitlines()[-1])
            kind = getattr(errors, document["kind"])
            raise kind(document["message"], hint=document["hint"])
        raise KernelRefused(f"{what} failed", hint="see the daemon's log")


def run(work: Callable[[list[str]], None]) -> int:
    """The main program of such a process: ``work`` with the words; its exit code."""
    parent, *words = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):  # it died before we asked to be told
        return 1
    try:
        work(words)
    except FscacheError as e:
        document = {"kind": type(e).__name__, "message": str(e), "hint": e.hint}
        print(json.dumps(document))
        return 1
    return 0
