"""Files of ours: an open one ends for all its users at once."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from nydus_fscache.files import OpenFile


def test_after_close_no_use_begins_and_one_that_had_begun_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "f"
    original = os.open(path, os.O_RDWR | os.O_CREAT)
    before = len(os.listdir("/proc/self/fd"))
    try:
        file = OpenFile(original)
        assert len(os.listdir("/proc/self/fd")) == before, "no descriptor until it is used"
        with file.use() as fd:
            assert fd != original
            file.close()
            with pytest.raises(OSError, match="closed") as error, file.use():
                pass
            assert error.value.errno == errno.EBADF
            os.pwrite(fd, b"late, and in its own file", 0)
        assert path.read_bytes() == b"late, and in its own file"
        assert len(os.listdir("/proc/self/fd")) == before
        file.close()
    finally:
        os.close(original)
