"""``localfs``: blobs as files named by their id, in a directory or several; or one file."""

from __future__ import annotations

import os
import time
from pathlib import Path

from nydus_fscache.backend.base import Backend, RangeStream, is_safe_name
from nydus_fscache.backend.options import Options
from nydus_fscache.errors import BackendError, UsageError


class _FileRange:
    def __init__(self, fd: int, blob_id: str, off: int, length: int) -> None:
        self._fd = fd
        self._blob_id = blob_id
        self._off = off
        self._end = off + length

    def readinto(self, buf: memoryview) -> int:
        if self._off == self._end:
            return 0
        try:
            count = os.preadv(self._fd, [buf[: self._end - self._off]], self._off)
        except OSError as e:
            raise BackendError(f"blob {self._blob_id}: {e.strerror}", retryable=True) from e
        if not count:
            raise BackendError(
                f"blob {self._blob_id} ends at byte {self._off}, {self._end} are needed",
                hint="the file was cut: put the whole blob there",
            )
        self._off += count
        return count

    def close(self) -> None:
        os.close(self._fd)


class LocalFs(Backend):
    """Config: ``blob_file``, or ``dir`` with ``alt_dirs`` searched in order."""

    name = "localfs"

    def __init__(self, options: Options) -> None:
        self._file = options.text("blob_file", "")
        directory = options.text("dir", "")
        self._dirs = [Path(d) for d in (directory, *options.texts("alt_dirs")) if d]
        options.ignore("readahead", "readahead_sec")
        options.end()
        if not self._file and not self._dirs:
            raise UsageError("localfs needs blob_file or dir", hint='{"dir": "/path/to/blobs"}')

    def _open(self, blob_id: str) -> int:
        if self._file:
            candidates = [Path(self._file)]
        elif is_safe_name(blob_id):
            candidates = [d / blob_id for d in self._dirs]
        else:
            raise BackendError(f"blob id {blob_id!r} is no file name", hint="a hostile image?")
        for path in candidates:
            try:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            except OSError as e:
                raise BackendError(f"blob {blob_id}: cannot open {path}: {e.strerror}") from e
        raise BackendError(
            f"blob {blob_id} is not in {', '.join(str(c.parent) for c in candidates)}",
            hint="is --blob-dir the directory that the image was built with?",
            status=404,
        )

    def size(self, blob_id: str, *, deadline: float) -> int:
        fd = self._open(blob_id)
        try:
            return os.lseek(fd, 0, os.SEEK_END)
        finally:
            os.close(fd)

    def open_range(
        self, blob_id: str, off: int, length: int, *, deadline: float, prefetch: bool
    ) -> RangeStream:
        if time.monotonic() > deadline:
            raise BackendError(f"blob {blob_id}: not in time", retryable=True)
        return _FileRange(self._open(blob_id), blob_id, off, length)

    def close(self) -> None:
        """Nothing is kept open."""
