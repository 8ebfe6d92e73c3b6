"""Private copies of bootstraps, ``images/SHA256.boot``, that nobody changes under the kernel.

A mount waits for this, and a bootstrap may have hundreds of megabytes.  So the bytes go through
memory once, a piece at a time: each is written and hashed at the same moment, and what was
hashed by this process and has not changed since is not read again.  A copy that is good is
never replaced: mounts have its inode, and leases are asked of it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from nydus_fscache.errors import CacheDirError
from nydus_fscache.files import TEMPORARY, open_state_file, remove, status_of_ours
from rafs_v6.sha256 import file_sha256, hasher

PIECE = 1 << 20  # bytes; a smaller bootstrap is hashed before it is written
_SUFFIX = ".boot"

Pieces = Callable[[], Iterable[bytes | memoryview]]
"""The bytes of a bootstrap from the start, each time that it is called; each piece is good until
the next is asked for."""

_Stamp = tuple[int, int, int, int, int]


def _stamp(status: os.stat_result) -> _Stamp:
    return (
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )  # fmt: skip


class Bootstraps:
    """Thread-safe."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._keeping = threading.Lock()
        self._sizes: set[int] | None = None  # of copies that there are, or were
        self._verified: dict[str, _Stamp] = {}  # by digest: whose bytes were hashed here
        self._syncing: dict[str, Future[None]] = {}
        self._numbers = itertools.count()

    def path(self, digest: str) -> Path:
        return self.directory / f"{digest}{_SUFFIX}"

    def keep(self, size: int, pieces: Pieces) -> str:
        """Make a copy, unless there is one: the sha256 of the bytes, hex.  ``size``: theirs, as far
        as it is known.

        The copy may not be on the disk yet: ``wait_until_durable``.  Raises ``CacheDirError``, and
        what ``pieces`` raises.
        """
        with self._keeping:  # two mounts at once may be of one image
            try:
                digest = _digest_of(size, pieces()) if size in self._known_sizes() else ""
                if not digest or not self._is_good(digest):
                    digest = self._copy(size, pieces())
                os.utime(self.path(digest))  # used now
                self._verified[digest] = _stamp(self.path(digest).lstat())
            except OSError as e:
                raise self._error(e) from e
            self._known_sizes().add(size)
        return digest

    def is_verified(self, digest: str) -> bool:
        """Has this process hashed the copy, and has nobody touched it since?"""
        with contextlib.suppress(OSError):
            return self._verified.get(digest) == _stamp(self.path(digest).lstat())
        return False

    def wait_until_durable(self, digest: str) -> None:
        """The kernel may drop pages that a disk did not take, and read others: before it mounts
        the copy, that must be on the disk.  Raises ``CacheDirError``."""
        syncing = self._syncing.get(digest)
        if syncing is None:
            return
        try:
            syncing.result()
        except OSError as e:
            remove(self.path(digest))
            raise self._error(e) from e
        finally:
            self._syncing.pop(digest, None)

    def _known_sizes(self) -> set[int]:
        if self._sizes is None:
            with os.scandir(self.directory) as entries:
                names = [e for e in entries if e.name.endswith(_SUFFIX)]
                self._sizes = {e.stat(follow_symlinks=False).st_size for e in names}
        return self._sizes

    def _is_good(self, digest: str) -> bool:
        path = self.path(digest)
        if status_of_ours(path) is None:
            return False
        if self.is_verified(digest):
            return True
        return file_sha256(path) == digest

    def _copy(self, size: int, pieces: Iterable[bytes | memoryview]) -> str:
        temporary = self.directory / f".{next(self._numbers)}{_SUFFIX}{TEMPORARY}"
        remove(temporary)  # an earlier process's
        fd = open_state_file(temporary)
        try:
            digest = _write(fd, size, pieces)
            if not self._is_good(digest):
                temporary.rename(self.path(digest))
                self._sync(digest, os.dup(fd))
        finally:
            os.close(fd)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        return digest

    def _sync(self, digest: str, fd: int) -> None:
        """In a thread, beside what the mount does next; it closes ``fd``."""
        done: Future[None] = Future()

        def sync() -> None:
            try:
                os.fsync(fd)
            except OSError as e:
                done.set_exception(e)
            else:
                done.set_result(None)
            finally:
                os.close(fd)

        thread = threading.Thread(target=sync, name="sync bootstrap", daemon=True)
        thread.start()
        self._syncing[digest] = done

    def _error(self, error: OSError) -> CacheDirError:
        return CacheDirError(
            f"cannot keep the bootstrap in {self.directory}: {error.strerror}",
            hint="free some space, or choose another --root",
        )


def _digest_of(size: int, pieces: Iterable[bytes | memoryview]) -> str:
    digest = hasher(size)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _write(fd: int, size: int, pieces: Iterable[bytes | memoryview]) -> str:
    """Their sha256, hex; of many made by another thread, while this one writes."""
    digest, beside = hasher(size), size > PIECE
    with os.fdopen(fd, "wb", closefd=False) as f, ThreadPoolExecutor(1, "hash") as hashing:
        for piece in pieces:
            if not beside:
                digest.update(piece)
                f.write(piece)
                continue
            hashed = hashing.submit(digest.update, piece)
            f.write(piece)
            hashed.result()
    return digest.hexdigest()
