"""The state and cache directory: its layout, who may use it, what survives a boot.

    lock            held by the daemon
    api.sock        the control API
    state.json      what is mounted (state.py)
    daemon.log      the daemon's standard error, when it was started by ``mount``
    events.jsonl    what happened (log/targets.py); with an older events.jsonl.1
    cache/          the blobs (blobfiles.py), and an index of their chunks (chunkindex.py)
    cachefiles/     the kernel's, when the transport is cachefiles on-demand
    images/         bootstraps, by the sha256 of their bytes

Everything is root's alone (0700); no file is opened through a symbolic link.
"""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

from nydus_fscache.cache.blob_files import BlobFiles
from nydus_fscache.errors import CacheDirError, RootInUse
from nydus_fscache.files import claim_root, replace_file, status_of_ours, try_lock


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


class Store:
    """An opened root."""

    def __init__(
        self, root: Path, lock: int | None = None, cachefiles: Path | None = None
    ) -> None:
        """``lock``: the lock's descriptor, when a predecessor left it.  ``cachefiles``: the
        kernel's directory, where an administrator named one."""
        claim_root(root)
        self.root = root
        self.lock = _locked(root) if lock is None else lock
        self.blobs = BlobFiles(_private_dir(root / "cache"))
        self.images = _private_dir(root / "images")
        self._keeping = threading.Lock()
        if cachefiles is not None and not cachefiles.is_dir():
            raise CacheDirError(f"{cachefiles} is not a directory", hint=f"mkdir {cachefiles}")
        self.cachefiles = cachefiles or _private_dir(root / "cachefiles")

    def close(self) -> None:
        os.close(self.lock)

    def keep_bootstrap(self, data: bytes) -> tuple[str, Path]:
        """A private copy that nobody changes under the kernel: (sha256, path)."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.images / f"{digest}.boot"
        try:
            with self._keeping:  # two mounts at once may be of one image
                if status_of_ours(path) is None or path.read_bytes() != data:
                    replace_file(path, data)
                os.utime(path)  # used now
        except OSError as e:
            raise CacheDirError(
                f"cannot keep the bootstrap in {self.images}: {e.strerror}",
                hint="free some space, or choose another --root",
            ) from e
        return digest, path
