"""A free loop device is found though others take and leave them at the same time."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from nydus_fscache.errors import KernelRefused
from nydus_fscache.kernel import loop


@pytest.mark.parametrize("code", [errno.ENXIO, errno.EBUSY])
def test_one_that_another_took_meanwhile(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """ENXIO: it is just being let go."""
    numbers, opened = iter([7, 8]), []

    def refused(path: str) -> bool:
        return path.endswith("loop7")

    def open_(path: str, flags: int) -> int:
        opened.append(path)
        if code == errno.ENXIO and refused(path):
            raise OSError(code, os.strerror(code))
        return os.dup(0)

    def ioctl(fd: int, request: int, *words: Any) -> int:
        if request == loop.LOOP_CTL_GET_FREE:
            return next(numbers)
        if code == errno.EBUSY and refused(opened[-1]):
            raise OSError(code, os.strerror(code))
        return 0

    monkeypatch.setattr(loop.os, "open", open_)
    monkeypatch.setattr(loop.fcntl, "ioctl", ioctl)
    device, path = loop.open_loop(0, "file")
    os.close(device)
    assert path == "/dev/loop8"


def test_another_error_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_(path: str, flags: int) -> int:
        if "control" not in path:
            raise OSError(errno.EACCES, "Permission denied")
        return os.dup(0)

    monkeypatch.setattr(loop.os, "open", open_)
    monkeypatch.setattr(loop.fcntl, "ioctl", lambda *words: 7)
    with pytest.raises(KernelRefused, match="Permission denied"):
        loop.open_loop(0, "file")
