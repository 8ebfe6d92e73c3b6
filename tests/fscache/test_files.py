"""Files of ours: an open one ends for all its users at once."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from nydus_fscache.api.nydusd.server import Listener
from nydus_fscache.errors import UsageError
from nydus_fscache.files import OpenFile, write_output


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


@pytest.fixture
def null(tmp_path: Path) -> Path:
    """A device that throws away: the machine's own is not to be risked."""
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT: no device can be made")
    os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    return tmp_path / "null"


def test_an_output_that_is_a_device_or_a_link_is_written_to_and_stays(
    tmp_path: Path, null: Path
) -> None:
    write_output(null, b"report")
    assert null.is_char_device()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_output(tmp_path / "link", b"report")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"report"
    (tmp_path / "old").write_bytes(b"much longer than the report")
    before = (tmp_path / "old").stat().st_ino
    write_output(tmp_path / "old", b"report")
    assert (tmp_path / "old").read_bytes() == b"report"
    assert (tmp_path / "old").stat().st_ino != before


def test_only_a_socket_makes_room_for_a_socket(tmp_path: Path, null: Path) -> None:
    (tmp_path / "data").write_bytes(b"dear")
    for path in (null, tmp_path / "data"):
        with pytest.raises(UsageError, match="not a socket"):
            Listener(path)
    assert null.is_char_device()
    assert (tmp_path / "data").read_bytes() == b"dear"
    path = tmp_path / "api.sock"
    Listener(path).close(leave_file=True)  # as one that was killed leaves it
    assert path.is_socket()
    Listener(path).close()
    assert not path.exists()
