"""Blobs outside of the registry: in a directory, in a bucket of OSS or S3."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import IO, Any, BinaryIO

from nydus_fscache.convert.bucket import PART, Bucket
from nydus_fscache.convert.readers import BackendBlobs
from nydus_fscache.errors import BackendError, UsageError
from nydus_fscache.registry.layout import FileStream, FileWriter
from nydus_fscache.registry.store import BlobStore, BlobWriter


class LocalBlobs:
    """A directory that the ``localfs`` backend reads: a blob appears under its hex, whole."""

    def __init__(self, directory: Path, *, force: bool) -> None:
        self._directory, self._force = directory, force
        directory.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        pass

    def _file(self, digest: str) -> Path:
        return self._directory / digest.removeprefix("sha256:")

    def has_blob(self, digest: str) -> int | None:
        try:
            return None if self._force else self._file(digest).stat().st_size
        except FileNotFoundError:
            return None

    def open_blob(self, digest: str, size: int) -> FileStream:
        return FileStream(self._file(digest).open("rb"), size)

    def read_at(self, digest: str, off: int, length: int) -> bytes:
        with self._file(digest).open("rb") as file:
            file.seek(off)
            data = file.read(length)
        if len(data) != length:
            raise BackendError(f"{self._file(digest)} is cut short")
        return data

    def writer(self) -> FileWriter:
        return FileWriter(self._directory)


class ObjectBlobs(BackendBlobs):
    """A bucket.  A blob's name is known at its end, so it lies in a file until then."""

    def __init__(
        self, kind: str, config: dict[str, Any], work: Path, *, force: bool, part: int = PART
    ) -> None:
        super().__init__(kind, config)
        self.bucket, self._work, self._force = Bucket(kind, config, part), work, force

    def close(self) -> None:
        self.bucket.close()
        super().close()

    def has_blob(self, digest: str) -> int | None:
        return None if self._force else super().has_blob(digest)

    def writer(self) -> BlobWriter:
        return _ObjectWriter(self)

    def scratch(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self._work)


class _ObjectWriter:
    def __init__(self, store: ObjectBlobs) -> None:
        self._store, self._file = store, store.scratch()

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)

    def finish(self, digest: str) -> None:
        self._file.flush()
        if self._store.has_blob(digest) is None:
            size = os.fstat(self._file.fileno()).st_size
            self._store.bucket.put(digest.removeprefix("sha256:"), self._open, size)
        self.abort()

    def abort(self) -> None:
        self._file.close()

    def _open(self) -> BinaryIO:
        return open(f"/proc/self/fd/{self._file.fileno()}", "rb")


def make_blob_store(
    kind: str, config: dict[str, object], work: Path, *, force: bool
) -> BlobStore:
    if kind == "localfs":
        directory = config.get("dir")
        if not isinstance(directory, str) or not directory:
            raise UsageError("the localfs backend needs dir", hint='--backend-config {"dir":"DIR"}')
        return LocalBlobs(Path(directory), force=force)
    return ObjectBlobs(kind, config, work, force=force)
