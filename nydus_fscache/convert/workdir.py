"""The directory of one run: what is ours in it goes at the end, what was there stays.

A killed run leaves its directory behind, which nobody locks any more: the next run
in the same place removes it, and keeps its journal.  The daemon of a killed ``mount`` ends
before its data go; while its tree is in use, both stay.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from nydus_fscache.api.client import Client
from nydus_fscache.errors import FscacheError, NoDaemon, UsageError

log = logging.getLogger("converter")

_PREFIX = "nydusify-"
_MARK = ".nydusify-made"  # this directory is ours as a whole
_LOCK = "lock"
_DAEMON = "daemon"  # the root of the daemon that ``mount`` starts


class WorkDir:
    """``path``: the run's own directory below ``base``.  A context manager."""

    def __init__(self, base: Path) -> None:
        self.base = base
        try:
            guard = _made(base)
            try:
                self._remove_abandoned()
                self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
                self._lock = _open_lock(self.path)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(guard)
        except OSError as e:
            raise UsageError(f"cannot use --work-dir {base}: {e.strerror}") from e

    @property
    def daemon(self) -> Path:
        """For a daemon of this run."""
        return (self.path / _DAEMON).absolute()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        _remove(self.path)
        os.close(self._lock)
        with contextlib.suppress(OSError):
            guard = _guard(self.base)
            try:
                if {p.name for p in self.base.iterdir()} == {_MARK}:
                    shutil.rmtree(self.base)
            finally:
                os.close(guard)

    def _remove_abandoned(self) -> None:
        for path in self.base.glob(f"{_PREFIX}*"):
            with contextlib.suppress(FileNotFoundError, PermissionError):  # another user's
                if path.is_dir():
                    _remove_if_abandoned(path)


def _made(base: Path) -> int:
    """``base``, which is made where it is not there, locked."""
    while True:
        with contextlib.suppress(FileExistsError):
            base.mkdir(parents=True, mode=0o755)
            (base / _MARK).touch()
        with contextlib.suppress(FileNotFoundError):  # the run that made it has ended
            return _guard(base)


def _guard(base: Path) -> int:
    """The directory, locked: no other run takes a new one in it for abandoned, nor removes it."""
    while True:
        fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(fd), os.stat(base)):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _remove_if_abandoned(path: Path) -> None:
    if not (path / _LOCK).is_file():
        with contextlib.suppress(OSError):
            path.rmdir()  # killed before it was locked; what holds something is not ours
        return
    fd = os.open(path / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path)
    except BlockingIOError:
        return
    finally:
        os.close(fd)


def end_daemon(root: Path) -> None:
    """Unmount all of it and end it; ``MountpointError`` while a tree is in use.

    One that was killed is started again: it alone knows what it has mounted.
    """
    if not root.is_dir():
        return
    client = Client(root)
    client.serve_again()
    with contextlib.suppress(NoDaemon):
        client.call("POST", "/v1/stop")
        client.wait_for_end()


def _remove(directory: Path) -> None:
    """The lock last: without it, nobody would know what is left for abandoned."""
    try:
        end_daemon(directory / _DAEMON)
    except FscacheError as e:
        log.warning("%s stays: %s", directory, e)
        return
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
