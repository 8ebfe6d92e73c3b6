"""The state and cache directory: its layout, who may use it, what survives a boot.

    lock            held by the daemon
    api.sock        the control API
    state.json      what is mounted (state.py)
    daemon.log      the daemon's standard error, when it was started by ``mount``
    cache/          P.blob.data, P.blob.data.chunk_map, P.blob.meta, as nydusd's filecache
                    has them, and P.identity (ours): which chunk map the data belong to
    cachefiles/     the kernel's, when the transport is cachefiles on-demand
    images/         bootstraps, by the sha256 of their bytes
    run/            page maps: true until the machine stops, dropped when the boot id differs

Everything is root's alone (0700); no file is opened through a symbolic link.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from pathlib import Path

from nydus_fscache import kernel
from nydus_fscache.cache.presence import PAGE, ChunkMapFile, PageMap, open_state_file
from nydus_fscache.errors import BadImage, CacheDirError

_BLOB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")

DEFAULT_ROOT = Path("/var/lib/nydus-fscache")


def checked_blob_id(blob_id: str) -> str:
    """A blob id that is safe as a file name; it comes from the image, which may be hostile."""
    if not _BLOB_ID.fullmatch(blob_id):
        raise BadImage(
            f"blob id {blob_id!r} cannot name a cache file",
            hint="ids are 1 to 64 letters, digits, '.', '_' or '-'; the image is not to be trusted",
        )
    return blob_id


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
    lock = open_state_file(root / "lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise CacheDirError(
            f"another daemon uses {root}", hint=f"see nydus-fscache status --root {root}"
        ) from None
    return lock


class Store:
    """An opened root.  ``fresh_boot``: nothing below run/ is true any more, it was dropped."""

    def __init__(self, root: Path, lock: int | None = None) -> None:
        """``lock``: the lock's descriptor, when a predecessor left it."""
        self.root = _private_dir(root)
        self.lock = _locked(root) if lock is None else lock
        self.cache = _private_dir(root / "cache")
        self.images = _private_dir(root / "images")
        self.cachefiles = _private_dir(root / "cachefiles")
        self.fresh_boot = self._drop_run_of_another_boot()
        self.run = _private_dir(root / "run")

    def close(self) -> None:
        os.close(self.lock)

    def _drop_run_of_another_boot(self) -> bool:
        run, boot = self.root / "run", kernel.boot_id()
        marker = run / "boot_id"
        if marker.is_file() and marker.read_text() == boot:
            return False
        shutil.rmtree(run, ignore_errors=True)
        _private_dir(run)
        marker.write_text(boot)
        return True

    # -- images ------------------------------------------------------------------------------

    def keep_bootstrap(self, data: bytes) -> tuple[str, Path]:
        """A private copy that nobody changes under the kernel: (sha256, path)."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.images / f"{digest}.boot"
        if not path.exists() or path.stat().st_size != len(data):
            temporary = self.images / f".{digest}.{os.getpid()}"
            try:
                fd = open_state_file(temporary)
                with os.fdopen(fd, "wb") as f:
                    f.write(data)
                    f.flush()
                    os.fsync(f.fileno())
                temporary.rename(path)
            except OSError as e:
                temporary.unlink(missing_ok=True)
                raise CacheDirError(
                    f"cannot keep the bootstrap in {self.images}: {e.strerror}",
                    hint="free some space, or choose another --root",
                ) from e
        return digest, path

    # -- blobs -------------------------------------------------------------------------------

    def claim_name(self, blob_id: str, identity: str, in_use: dict[str, str]) -> str:
        """File name stem for a blob whose chunk map is ``identity`` (hex).

        A blob id is only a name that a bootstrap states.  Two images that describe one
        id differently never share a file: the second gets a name of its own.
        ``in_use``: stem -> identity of the objects that are open.
        """
        stem = checked_blob_id(blob_id)
        kept = self._identity_of(stem)
        if in_use.get(stem, identity) != identity or (kept != identity and stem in in_use):
            stem = f"{stem}~{identity[:16]}"
            kept = self._identity_of(stem)
        if kept != identity and stem not in in_use:
            self.forget(stem)
            self._path(stem, "identity").write_text(identity)
        return stem

    def _path(self, stem: str, suffix: str) -> Path:
        return self.cache / f"{stem}.{suffix}"

    def _identity_of(self, stem: str) -> str:
        path = self._path(stem, "identity")
        return path.read_text() if path.is_file() and not path.is_symlink() else ""

    def forget(self, stem: str) -> None:
        """Delete all that is cached under a stem."""
        for suffix in ("identity", "blob.data.chunk_map", "blob.meta", "blob.data"):
            self._path(stem, suffix).unlink(missing_ok=True)
        (self.run / f"{stem}.pages").unlink(missing_ok=True)

    def open_data(self, stem: str, size: int) -> int:
        """The flat, sparse cache file, ``size`` bytes long; its descriptor never fires an event
        of ours as long as it is opened before the mark."""
        path = self._path(stem, "blob.data")
        fd = open_state_file(path)
        try:
            if os.fstat(fd).st_size != size:
                os.ftruncate(fd, 0)
                os.ftruncate(fd, size)
                self._path(stem, "blob.data.chunk_map").unlink(missing_ok=True)
                (self.run / f"{stem}.pages").unlink(missing_ok=True)
        except OSError as e:
            os.close(fd)
            raise CacheDirError(
                f"cannot size {path} to {size} bytes: {e.strerror}", hint="choose another --root"
            ) from e
        return fd

    def open_chunk_map(self, stem: str, nchunks: int) -> ChunkMapFile:
        return ChunkMapFile(self._path(stem, "blob.data.chunk_map"), nchunks)

    def open_pages(self, stem: str, size: int) -> tuple[PageMap, bool]:
        """The page map, and whether it was there before (then it is true)."""
        path = self.run / f"{stem}.pages"
        was_there = path.exists() and path.stat().st_size == max(1, -(-size // (8 * PAGE)))
        return PageMap(path, size), was_there

    def keep_blob_meta(self, stem: str, cct: bytes, header: bytes) -> None:
        """The CCT as nydusd caches it (sheet rafs-v6 5): padded to 4096, then the header."""
        path = self._path(stem, "blob.meta")
        content = cct + bytes(-len(cct) % 4096) + header
        if path.is_file() and path.stat().st_size == len(content):
            return
        fd = open_state_file(path)
        with os.fdopen(fd, "wb") as f:
            f.truncate(0)
            f.write(content)
