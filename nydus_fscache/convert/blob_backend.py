"""Blobs outside of the registry: in a directory, in a bucket of OSS or S3."""

from __future__ import annotations

from pathlib import Path

from nydus_fscache.errors import BackendError, UsageError
from nydus_fscache.registry.layout import FileStream, FileWriter
from nydus_fscache.registry.store import BlobStore


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


def make_blob_store(
    kind: str, config: dict[str, object], work: Path, *, force: bool
) -> BlobStore:
    if kind == "localfs":
        directory = config.get("dir")
        if not isinstance(directory, str) or not directory:
            raise UsageError("the localfs backend needs dir", hint='--backend-config {"dir":"DIR"}')
        return LocalBlobs(Path(directory), force=force)
    raise UsageError(f"--backend-type {kind} is not supported for writing yet")
