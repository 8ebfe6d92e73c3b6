"""``localfs``: blobs as files named by their id, in a directory or several; or one file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from stat import S_IFBLK, S_IFMT, S_IFREG

from nydus_fscache.backend.base import Backend, RangeStream, is_safe_name
from nydus_fscache.config.options import Options
from nydus_fscache.errors import BackendError, UsageError


class FileRange:
    """Owns ``fd``.  Offsets are those of the file."""

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
            raise BackendError(
                f"blob {self._blob_id}: {e.strerror}", hint="see dmesg", retryable=True
            ) from e
        if not count:
            raise BackendError(
                f"blob {self._blob_id} ends at byte {self._off}, {self._end} are needed",
                hint="the file was cut: put the whole blob there",
            )
        self._off += count
        return count

    def close(self) -> None:
        os.close(self._fd)


def _holds_data(fd: int) -> bool:
    """An empty file is what an interrupted download leaves; a directory has no bytes."""
    stat = os.fstat(fd)
    kind = S_IFMT(stat.st_mode)
    return kind == S_IFBLK or (kind == S_IFREG and stat.st_size > 0)


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
            raise BackendError(f"blob id {blob_id!r} is not a file name", hint="a hostile image?")
        for path in candidates:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a fifo would wait
            except FileNotFoundError:
                continue
            except OSError as e:
                raise BackendError(
                    f"blob {blob_id}: cannot open {path}: {e.strerror}",
                    hint="check its permissions",
                ) from e
            if _holds_data(fd):
                return fd
            os.close(fd)
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
        return FileRange(self._open(blob_id), blob_id, off, length)

    def close(self) -> None:
        """Nothing is kept open."""
