"""Several runs in one work directory: none takes another's away, nor what was there before."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from nydus_fscache.convert.workdir import WorkDir
from nydus_fscache.errors import UsageError

LOCKS = Path("/proc/locks")


def until_waited_for(directory: Path) -> None:
    """Somebody waits for the lock of it."""
    mark = f":{directory.stat().st_ino} "
    deadline = time.monotonic() + 30
    while not any("->" in line and mark in line for line in LOCKS.read_text().splitlines()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_empty_directory_that_was_there_stays(tmp_path: Path) -> None:
    base = tmp_path / "tmp"
    base.mkdir()
    with WorkDir(base) as work:
        assert work.path.is_dir()
    assert list(base.iterdir()) == []


def test_a_run_that_ends_waits_for_one_that_begins(tmp_path: Path) -> None:
    """The new one has locked the directory, and is about to make its own in it."""
    base = tmp_path / "tmp"
    first = WorkDir(base)
    guard = os.open(base, os.O_RDONLY)
    fcntl.flock(guard, fcntl.LOCK_EX)
    ending = threading.Thread(target=first.__exit__, args=(None, None, None))
    ending.start()
    until_waited_for(base)
    (base / "nydusify-new").mkdir()
    os.close(guard)
    ending.join(30)
    assert (base / "nydusify-new").is_dir()


def test_a_run_that_begins_meets_one_that_ends(tmp_path: Path) -> None:
    """The directory is gone when the new one has its lock: it makes it again."""
    base = tmp_path / "tmp"
    base.mkdir()
    guard = os.open(base, os.O_RDONLY)
    fcntl.flock(guard, fcntl.LOCK_EX)
    begun: list[WorkDir] = []
    beginning = threading.Thread(target=lambda: begun.append(WorkDir(base)))
    beginning.start()
    until_waited_for(base)
    base.rmdir()
    os.close(guard)
    beginning.join(30)
    with begun[0] as work:
        assert work.path.parent == base
        assert work.path.is_dir()
    assert not base.exists()


def test_two_first_runs_at_once(tmp_path: Path) -> None:
    """Neither finds the directory; the one makes it while the other is about to."""

    class Slow(type(tmp_path)):  # type: ignore[misc]
        def mkdir(self, *args: object, **words: object) -> None:
            Path(self).mkdir()  # the other one was quicker
            super().mkdir(*args, **words)

    base = Slow(tmp_path / "tmp")
    with WorkDir(base) as work:
        assert work.path.is_dir()


def test_a_link_to_nowhere_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "tmp"
    base.symlink_to(tmp_path / "none" / "there")
    with pytest.raises(UsageError, match="cannot use --work-dir"):
        WorkDir(base)
