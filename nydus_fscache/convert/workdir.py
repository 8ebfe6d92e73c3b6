"""The directory of one run: what is ours in it goes at the end, what was there stays.

A killed run leaves its directory behind, which nobody locks any more: the next run
in the same place removes it, and keeps its journal.  The daemon of a killed ``mount`` ends
before its data go; while its tree is in use, both stay.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import shutil
from pathlib import Path
from typing import Self

from nydus_fscache.api.client import Client
from nydus_fscache.errors import FscacheError, NoDaemon, UsageError
from nydus_fscache.registry.leftovers import Leftover

log = logging.getLogger("converter")

_PREFIX = "nydusify-"
_MARK = ".nydusify-made"  # this directory is ours as a whole
_LOCK = "lock"
_TRIES = 100
_DAEMON = "daemon"  # the root of the daemon that ``mount`` starts


class WorkDir:
    """``path``: the run's own directory below ``base``.  A context manager."""

    def __init__(self, base: Path) -> None:
        self.base, self._lock = base, -1
        self.path = base / f"{_PREFIX}{secrets.token_hex(6)}"
        self._was_there = base.exists()
        self._guard = _Guard(base)
        self._leftover = Leftover(self._end)
        try:
            self._guard.make()
            try:
                self._remove_abandoned()
                os.mkdir(self.path, 0o700)
                self._lock = _open_lock(self.path)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                self._guard.release()
        except OSError as e:
            self._end()
            raise UsageError(f"cannot use --work-dir {base}: {e.strerror}") from e

    @property
    def daemon(self) -> Path:
        """For a daemon of this run."""
        return (self.path / _DAEMON).absolute()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()

    def _end(self) -> None:
        """From any state: a signal may have come anywhere, here too."""
        if self.path.exists():
            _remove(self.path)
        if self._lock >= 0:
            lock, self._lock = self._lock, -1
            os.close(lock)
        with contextlib.suppress(OSError):
            self._guard.take()
            try:
                names = {p.name for p in self.base.iterdir()}
                if names == {_MARK} or (not names and not self._was_there):
                    shutil.rmtree(self.base)
            finally:
                self._guard.release()
        self._leftover.forget()

    def _remove_abandoned(self) -> None:
        for path in self.base.glob(f"{_PREFIX}*"):
            with contextlib.suppress(FileNotFoundError, PermissionError):  # another user's
                if path.is_dir():
                    _remove_if_abandoned(path)


class _Guard:
    """A lock of ``base``: no other run takes a new directory in it for abandoned, nor removes it.

    Wherever a signal comes, the next ``take`` does not wait for this one.
    """

    def __init__(self, base: Path) -> None:
        self._base, self._fd = base, -1

    def make(self) -> None:
        """The directory, where it is not there."""
        for _ in range(_TRIES):  # but not for ever: it may be a link to nowhere
            # Another run may make it now, or end and take it away.
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                self._base.mkdir(parents=True, mode=0o755)
                (self._base / _MARK).touch()
            with contextlib.suppress(FileNotFoundError):  # the run that made it has ended
                return self.take()
        raise FileNotFoundError(errno.ENOENT, "it cannot be made", str(self._base))

    def take(self) -> None:
        self.release()
        while True:
            self._fd = os.open(self._base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            if self._is_there():
                return
            self.release()

    def _is_there(self) -> bool:
        """The directory may have been removed, or made again, while it was waited for."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self._base))
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        if self._fd >= 0:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            fd, self._fd = self._fd, -1
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
