"""The directory of one run: what is ours in it goes at the end, what was there stays.

A killed run leaves its directory behind, which nobody locks any more: the next run
in the same place removes it, and keeps its journal.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from nydus_fscache.errors import UsageError

_PREFIX = "nydusify-"
_MARK = ".nydusify-made"  # this directory is ours as a whole
_LOCK = "lock"


class WorkDir:
    """``path``: the run's own directory below ``base``.  A context manager."""

    def __init__(self, base: Path) -> None:
        self.base = base
        try:
            if not base.exists():
                base.mkdir(parents=True, mode=0o755)
                (base / _MARK).touch()
            # Held so that no other run takes the new directory for an abandoned one.
            guard = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(guard, fcntl.LOCK_EX)
                self._remove_abandoned()
                self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
                self._lock = _open_lock(self.path)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(guard)
        except OSError as e:
            raise UsageError(f"cannot use --work-dir {base}: {e.strerror}") from e

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        _remove(self.path)
        os.close(self._lock)
        with contextlib.suppress(OSError):
            if {p.name for p in self.base.iterdir()} <= {_MARK}:
                shutil.rmtree(self.base)

    def _remove_abandoned(self) -> None:
        for path in self.base.glob(f"{_PREFIX}*"):
            if not path.is_dir():
                continue
            if not (path / _LOCK).is_file():
                with contextlib.suppress(OSError):
                    path.rmdir()  # killed before it was locked; what holds something is not ours
                continue
            try:
                fd = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
            except BlockingIOError:
                continue
            finally:
                os.close(fd)


def _remove(directory: Path) -> None:
    """The lock last: without it, nobody would know what is left for abandoned."""
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != _LOCK:
                path.unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def _open_lock(directory: Path) -> int:
    return os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def writable(path: Path) -> None:
    """``UsageError`` when a file could not be made there: told before the work, not after."""
    if not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise UsageError(f"cannot write {path}", hint="its directory must be there, and writable")
