"""Blobs outside of the registry: in a directory, in a bucket of OSS or S3."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import IO, Any, BinaryIO

from nydus_fscache.backend.make import make_backend
from nydus_fscache.backend.oss import Oss
from nydus_fscache.backend.s3 import S3
from nydus_fscache.config.http_options import take_http_options
from nydus_fscache.config.options import Options
from nydus_fscache.convert.readers import BackendBlobs
from nydus_fscache.errors import BackendError, UsageError
from nydus_fscache.http.answer import StatusError
from nydus_fscache.http.session import Call, Session, Upload
from nydus_fscache.http.wire import Deadline
from nydus_fscache.registry.layout import FileStream, FileWriter
from nydus_fscache.registry.store import BlobStore, BlobWriter

_HTTP = (
    "scheme", "timeout", "connect_timeout", "retry_limit", "skip_verify", "ca_cert_files",
    "client_cert_file", "client_key_file", "proxy",
)  # fmt: skip
_ATTEMPTS = 3
_LONGEST_S = 24 * 3600.0
_STALL_S = 300.0
_LARGEST = 5 << 30


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
        self, kind: str, config: dict[str, Any], work: Path, *, force: bool
    ) -> None:
        super().__init__(kind, config)
        backend = make_backend({"type": kind, kind: config})
        assert isinstance(backend, S3 | Oss)
        self._bucket, self._work, self._force = backend, work, force
        http = take_http_options(Options(kind, {k: v for k, v in config.items() if k in _HTTP}))
        self._session = Session(http, environment_proxies=True)

    def close(self) -> None:
        self._session.close()
        self._bucket.close()
        super().close()

    def has_blob(self, digest: str) -> int | None:
        return None if self._force else super().has_blob(digest)

    def writer(self) -> BlobWriter:
        return _ObjectWriter(self)

    def put(self, blob_id: str, body: Upload) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            url, headers = self._bucket.put_request(blob_id)
            deadline = Deadline(time.monotonic() + _LONGEST_S, _STALL_S)
            try:
                with self._session.send(Call("PUT", url, {}, headers, body), deadline) as answer:
                    if answer.status not in (200, 201, 204):
                        raise StatusError(f"storing blob {blob_id}", answer)
                    return
            except BackendError as e:
                if not e.retryable or attempt == _ATTEMPTS:
                    raise
                time.sleep(attempt)

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
            if size > _LARGEST:
                raise BackendError(f"blob {digest} has {size} bytes; one request stores 5 GiB")
            self._store.put(digest.removeprefix("sha256:"), Upload(self._open, size))
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
