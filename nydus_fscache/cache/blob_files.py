"""The files of the cached blobs, in nydusd's layout, and in which order they become true.

For a blob of name P (format.md 5):

    P.blob.data             the flat blob, sparse
    P.blob.data.chunk_map   which chunks are there
    P.blob.meta             its chunk map, as nydusd reads it
    P.identity              ours: which chunk map and digests the data were verified against

A power cut may keep or lose each change that was not synced, in any order.  So:

* a chunk map is gone from the disk for good before its data file or identity become others;
* names and identity are on the disk before the first chunk is recorded (``_settle``), and so
  are the data of every chunk (object.py).

Whatever is not as we left it (another program's, damaged, planted) is never believed.  Data
that lie there without a record are candidates, which object.py verifies before it fetches.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Container, Iterator, Mapping
from functools import partial
from pathlib import Path

from nydus_fscache.cache.presence import ChunkMapFile, speaks_of
from nydus_fscache.errors import CacheDirError
from nydus_fscache.files import open_state_file, remove, replace_file, status_of_ours, sync
from nydus_fscache.image.blob_id import checked_blob_id

log = logging.getLogger("blobfiles")

DATA, CHUNK_MAP, META, IDENTITY = "blob.data", "blob.data.chunk_map", "blob.meta", "identity"
SUFFIXES = (CHUNK_MAP, IDENTITY, META, DATA)  # in the order in which they are deleted

_READ_ONLY = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def claim_name(
    blob_id: str, identity: str, in_use: Mapping[str, str], reserved: Container[str]
) -> str:
    """Name of the files of a blob whose chunk map is ``identity`` (hex).

    A blob id is only a name that a bootstrap states.  Two images that describe one id
    differently never share a file: the second gets a name of its own.
    ``in_use``: name -> identity of the objects that are open.  ``reserved``: names that a
    predecessor had open; they stay what they were.
    """
    plain = checked_blob_id(blob_id)
    own = f"{plain}~{identity[:16]}"
    if own in in_use or own in reserved or in_use.get(plain, identity) != identity:
        return own
    return plain


class BlobFiles:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._unsynced = True  # a name may have gone here, and come back after a power cut

    def path(self, name: str, suffix: str) -> Path:
        return self.directory / f"{name}.{suffix}"

    def forget(self, name: str) -> None:
        """Delete all that is cached under a name."""
        self._unsynced = True
        stem = f"{self.directory}/{name}"  # a gc deletes 10^5 of them: paths take the longest
        for suffix in SUFFIXES:
            remove(f"{stem}.{suffix}")

    def status(self, name: str) -> os.stat_result | None:
        """Of the data file; None: there is none."""
        with contextlib.suppress(OSError):
            return self.path(name, DATA).lstat()
        return None

    def open_data(self, name: str, identity: str, size: int) -> int:
        """The flat file, ``size`` bytes long; its chunk map is then one of ``identity``, or none.

        The descriptor never fires an event of ours as long as it is opened before the mark.
        """
        path = self.path(name, DATA)
        try:
            found = [s for s in SUFFIXES if os.path.lexists(self.path(name, s))]
            ours = {s: status_of_ours(self.path(name, s)) for s in SUFFIXES}
            data, kept = ours[DATA], self._identity(name)
            why = ""
            if data is not None and kept != identity:
                why = "not by our record"
            elif data is not None and data.st_size != size:
                why = "of another length"
            elif data is not None and not speaks_of(self.path(name, CHUNK_MAP), data):
                why = "copied or changed since they were recorded"
            believed = data is not None and not why
            if not believed:
                if why:
                    log.warning("blob %s: its data are %s: verified before use", name, why)
                self._unsynced |= bool(found)
                self._forget_record(name)
            fd = open_state_file(path)
            try:
                if os.fstat(fd).st_size != size:
                    os.ftruncate(fd, size)
                if not believed:
                    replace_file(self.path(name, IDENTITY), identity.encode(), durable=False)
            except BaseException:
                os.close(fd)
                raise
            return fd
        except OSError as e:
            raise CacheDirError(
                f"cannot make {path} of {size} bytes: {e.strerror}",
                hint="free some space, or choose another --root",
            ) from e

    @contextlib.contextmanager
    def reading(self, name: str, identity: str) -> Iterator[tuple[int, int] | None]:
        """Data and chunk map of a blob that nobody has open, or marks while this lasts; None when
        they are not of ``identity``, or gone."""
        fds: list[int] = []
        try:
            with contextlib.suppress(OSError):
                if self._identity(name) == identity:
                    for suffix in (DATA, CHUNK_MAP):
                        fds.append(os.open(self.path(name, suffix), _READ_ONLY))
            yield (fds[0], fds[1]) if len(fds) == 2 else None
        finally:
            for fd in fds:
                os.close(fd)

    def is_named(self, name: str, identity: str, fd: int) -> bool:
        """Is an open data file still what this name stands for?"""
        try:
            same = os.path.samestat(os.fstat(fd), self.path(name, DATA).lstat())
        except OSError:
            return False
        return same and self._identity(name) == identity

    def open_chunk_map(self, name: str, nchunks: int, data_fd: int) -> ChunkMapFile | None:
        """None when it cannot be had (a full disk): a blob can be served without a record.
        ``data_fd``: of ``open_data``, borrowed."""
        path = self.path(name, CHUNK_MAP)
        try:
            status_of_ours(path)
            return ChunkMapFile(path, nchunks, partial(self._settle, name), data_fd)
        except (OSError, CacheDirError) as e:
            log.error("blob %s: what is fetched is not recorded: %s", name, e)
            return None

    def keep_blob_meta(self, name: str, cct: bytes, header: bytes) -> None:
        """The CCT as nydusd caches it: padded to 4096, then the header.  Only nydusd needs it."""
        path = self.path(name, META)
        content = cct + bytes(-len(cct) % 4096) + header
        try:
            if status_of_ours(path) is not None:
                if path.read_bytes() == content:
                    return
                log.warning("%s is damaged, or of another blob: written anew", path)
            replace_file(path, content, durable=False)
        except (OSError, CacheDirError) as e:
            log.warning("%s is not written: %s", path, e)

    def _identity(self, name: str) -> str:
        try:
            return self.path(name, IDENTITY).read_bytes().decode("ascii", "replace")
        except OSError:
            return ""

    def _forget_record(self, name: str) -> None:
        for suffix in (CHUNK_MAP, IDENTITY):
            remove(self.path(name, suffix))
        if self._unsynced:
            sync(self.directory)
            self._unsynced = False

    def _settle(self, name: str) -> None:
        sync(self.path(name, IDENTITY))
        sync(self.directory)
