"""Files that are ours alone: opened without following links, replaced whole, synced when it counts.

Nothing is ever half-written under its final name, and a failure leaves no temporary file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from nydus_fscache.errors import CacheDirError, UsageError

ROOT_VARIABLE, DEFAULT_ROOT = "NYDUS_FSCACHE_ROOT", "/var/lib/nydus-fscache"
# what a root has in it: see cache/store.py
_ROOT_NAMES = {
    "lock", "api.sock", "state.json", "state.log", "state.reserve", "daemon.log",
    "start-error.json", "cache", "cachefiles", "images", "fronts.sock",
    "fronts.lock", "fronts.log", "events.jsonl", "events.jsonl.1",
}  # fmt: skip
_ROOT_DIRECTORIES = {"cache", "images"}
_SOCKET_PATH_MAX = 107  # bytes: unix(7)
_SAFE_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
TEMPORARY = ".new"  # how the names of what is not complete yet end; they begin with a dot


def node_root() -> Path:
    """State and cache of the node's daemon, where no option says it."""
    return Path(os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT)


def open_state_file(path: Path) -> int:
    """Open or make a file of ours for reading and writing; never through a symbolic link."""
    try:
        return os.open(path, _SAFE_OPEN, 0o600)
    except OSError as e:
        hint = "the state directory must be ours alone: remove what was planted there"
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space, or inodes: df -h, df -i"
        elif e.errno == errno.EROFS:
            hint = f"mount the file system of {path.parent} read-write"
        elif e.errno in (errno.EMFILE, errno.ENFILE):
            hint = "raise the limit of open files, then try again"
        raise CacheDirError(f"cannot open {path}: {e.strerror}", hint=hint) from e


def try_lock(path: Path) -> int | None:
    """The descriptor of a lock file that is ours now; None when another process has it."""
    lock = open_state_file(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def replace_file(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file anew, or not at all (``OSError``).

    It is a new inode each time: after a power cut the name stands for the old file or for
    the new one, never for the old one's inode with new contents.  ``durable`` False: the
    new one's contents may then be lost, so what reads it must notice.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    try:
        remove(temporary)
        with os.fdopen(os.open(temporary, _SAFE_OPEN, 0o600), "wb") as f:
            f.write(content)
            f.flush()
            if durable:
                os.fsync(f.fileno())
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def is_replaceable(path: Path) -> bool:
    """Is it a regular file, or nothing?  A device, a pipe or a link, as /dev/stdout is one, is to
    be written to: as root, a rename or an unlink would take /dev/null from the whole machine."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        return True


def write_output(path: Path, content: bytes) -> None:
    """A file that a user has named, as a whole or not at all where it can be replaced."""
    if not is_replaceable(path):
        path.write_bytes(content)
        return
    replace_file(path, content, durable=False)
    path.chmod(0o644)


def remove_socket(path: Path) -> None:
    """Make room for a socket that a user has named, where one of a dead process lies.  Raises
    ``UsageError`` for anything else that is there."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise UsageError(f"{path} is there and is not a socket", hint="name another path")
        path.unlink()
    except FileNotFoundError:
        pass


def remove(path: str | Path) -> None:
    """Delete whatever the name stands for, a directory with all in it; what a link points to
    stays.  Nothing there is no error."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        import shutil  # noqa: PLC0415 - start-up time of commands

        shutil.rmtree(path)


def status_of_ours(path: Path) -> os.stat_result | None:
    """None when there is nothing.  What is not a regular file that only we can write to was
    put there by somebody else: it is removed, with a line in the log."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        what = "not a regular file"
    elif status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        what = f"of owner {status.st_uid} and mode {stat.S_IMODE(status.st_mode):04o}"
    elif status.st_nlink != 1:
        what = f"a file with {status.st_nlink} names"
    else:
        return status
    import logging  # noqa: PLC0415 - start-up time of commands

    logging.getLogger("files").warning("%s is %s: removed", path, what)
    try:
        remove(path)
    except OSError as e:
        raise CacheDirError(f"cannot remove {path}: {e.strerror}", hint="remove it") from e
    return None


def sync(path: Path) -> None:
    """What is in this file, or which names are in this directory, survives a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class OpenFile:
    """An open file that is used by several threads, and ends for all of them at once.

    Of its own: a duplicate of ``fd``, made when it is first used.  After ``close`` each use is an
    ``OSError``, and the number is free only when the last use that had begun has ended: a late
    write can hit no other file.
    """

    def __init__(self, fd: int) -> None:
        self._original = fd
        self._fd = -1
        self._uses = 0
        self._closed = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def use(self) -> Iterator[int]:
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, "the file is closed")
            if self._fd < 0:
                self._fd = fcntl.fcntl(self._original, fcntl.F_DUPFD_CLOEXEC, 3)
            self._uses += 1
        try:
            yield self._fd
        finally:
            with self._lock:
                self._uses -= 1
                self._let_go()

    def read_at(self, off: int, length: int) -> bytes:
        """Nothing after ``close``, or where it cannot be read."""
        try:
            with self.use() as fd:
                return os.pread(fd, length, off)
        except OSError:
            return b""

    def close(self) -> None:
        """Before the descriptor that it was made of is closed.  Waits for nothing."""
        with self._lock:
            self._closed = True
            self._let_go()

    def _let_go(self) -> None:
        if self._closed and not self._uses and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges [off, end) below ``size`` that are no holes."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:  # no data behind this point
                return
            raise
        at = min(size, os.lseek(fd, start, os.SEEK_HOLE))
        if start < size:
            yield start, at


def data_extents(fd: int, size: int, limit: int) -> list[tuple[int, int]]:
    """The same as a list; the last of ``limit`` ranges goes to the end, whatever is there, and
    what cannot be told counts as a hole."""
    extents: list[tuple[int, int]] = []
    with contextlib.suppress(OSError):
        for start, end in data_ranges(fd, size):
            if len(extents) + 1 == limit:
                extents.append((start, size))
                break
            extents.append((start, end))
    return extents


def claim_root(root: Path) -> None:
    """Make the state and cache directory, or take one that is empty or was one before; 0700.

    Raises ``CacheDirError`` for a directory of others, which stays as it is.
    """
    try:
        root.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # maybe made by another in this moment
            root.mkdir(mode=0o700)
        status = root.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise CacheDirError(f"{root} is not a directory", hint="choose another --root")
        names = {n for n in os.listdir(root) if not (n[0] == "." and n.endswith(TEMPORARY))}
        was_one = "lock" in names and names >= _ROOT_DIRECTORIES
        is_shared = not names and status.st_mode & (stat.S_ISVTX | stat.S_IWOTH)
        if status.st_uid != os.geteuid() or is_shared or not (names <= _ROOT_NAMES or was_one):
            raise CacheDirError(
                f"{root} is a directory of others (owner {status.st_uid}, "
                f"mode {stat.S_IMODE(status.st_mode):04o}, {len(names)} entries)",
                hint="choose a new or empty directory with --root",
            )
        if status.st_mode & 0o077:
            root.chmod(0o700)
    except OSError as e:
        raise CacheDirError(
            f"cannot use {root}: {e.strerror}", hint="choose another directory with --root"
        ) from e


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A path for a unix socket, which may have few bytes: through its directory's descriptor
    where it is too long."""
    if len(os.fsencode(path)) <= _SOCKET_PATH_MAX:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
