"""The state and cache directory: its layout, who may use it, what survives a boot.

    lock            held by the daemon
    api.sock        the control API
    state.json      what is mounted (state.py); with changes of it in state.log (state_file.py)
    daemon.log      the daemon's standard error, when it was started by ``mount``
    events.jsonl    what happened (log/targets.py); with an older events.jsonl.1
    cache/          the blobs (blobfiles.py), and an index of their chunks (chunkindex.py)
    cachefiles/     the kernel's, when the transport is cachefiles on-demand
    images/         bootstraps, by the sha256 of their bytes (bootstraps.py)

Everything is root's alone (0700); no file is opened through a symbolic link.
"""

from __future__ import annotations

import os
from pathlib import Path

from nydus_fscache.cache.blob_files import BlobFiles
from nydus_fscache.errors import CacheDirError, RootInUse
from nydus_fscache.files import claim_root, try_lock
from nydus_fscache.image.bootstraps import Bootstraps


def _private_dir(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as e:
        raise CacheDirError(
            f"cannot make {path}: {e.strerror}", hint="choose another directory with --root"
        ) from e
    if not path.is_dir() or path.is_symlink() or status.st_uid != os.geteuid():
        raise CacheDirError(
            f"{path} is not a directory of ours", hint="remove it, or choose another --root"
        )
    if status.st_mode & 0o077:
        path.chmod(0o700)
    return path


def _locked(root: Path) -> int:
    lock = try_lock(root / "lock")
    if lock is None:
        raise RootInUse(
            f"another daemon uses {root}", hint=f"see nydus-fscache status --root {root}"
        )
    return lock


def _still_locked(root: Path, lock: int) -> int:
    """The lock of ``root`` for a successor that has inherited ``lock``."""
    if _is_lock_of(root, lock):
        return lock
    os.close(lock)  # it was deleted, and is made anew; or another daemon has been quicker
    return _locked(root)


def _is_lock_of(root: Path, lock: int) -> bool:
    try:
        return os.path.samestat((root / "lock").lstat(), os.fstat(lock))
    except OSError:
        return False


class Store:
    """An opened root."""

    def __init__(
        self, root: Path, lock: int | None = None, cachefiles: Path | None = None
    ) -> None:
        """``lock``: the lock's descriptor, when a predecessor left it.  ``cachefiles``: the
        kernel's directory, where an administrator named one."""
        if lock is not None and not _is_lock_of(root, lock) and os.fstat(lock).st_nlink:
            raise CacheDirError(f"{root} was moved while it was in use", hint="move it back")
        claim_root(root)
        self.root = root
        self.lock = _locked(root) if lock is None else _still_locked(root, lock)
        self.blobs = BlobFiles(_private_dir(root / "cache"))
        self.images = _private_dir(root / "images")
        self.bootstraps = Bootstraps(self.images)
        if cachefiles is not None and not cachefiles.is_dir():
            raise CacheDirError(f"{cachefiles} is not a directory", hint=f"mkdir {cachefiles}")
        self.cachefiles = cachefiles or _private_dir(root / "cachefiles")

    def is_in_place(self) -> bool:
        """Does the root's name stand for the directory that we have locked?  An administrator can
        move or delete it; what has its name then may be another daemon's."""
        return _is_lock_of(self.root, self.lock)

    def check_place(self) -> None:
        """Raises ``CacheDirError``."""
        if not self.is_in_place():
            raise CacheDirError(
                f"{self.root} was moved or deleted while it was in use",
                hint="move it back, or umount all of this daemon's images, which then ends",
            )

    def close(self) -> None:
        os.close(self.lock)
