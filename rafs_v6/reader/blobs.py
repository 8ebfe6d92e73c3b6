"""Where the bytes of blobs come from: a directory, one file, or a function of the caller's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from rafs_v6.errors import BlobsError, ImageError
from rafs_v6.format.toc import ReadAt
from rafs_v6.values import dataclass


@dataclass(frozen=True, slots=True)
class Blobs:
    """The compressed blobs of an image.  Both functions are called from any thread.

    ``read_at(blob_id, offset, length)``: exactly ``length`` bytes from byte ``offset``, or any
    error, which passes through unchanged.
    ``size(blob_id)``: bytes of the compressed object; asked only for what has a table of contents
    at its end (format.md 2.8).
    """

    read_at: ReadAt
    size: Callable[[str], int]


BlobsGiven = str | os.PathLike[str] | Blobs | ReadAt


def directory_blobs(directory: str | os.PathLike[str]) -> Blobs:
    """Blobs that lie in a directory under their ids.

    ``OSError`` for one that cannot be read, ``ImageError`` for one that is too short.
    """
    top = Path(directory)

    def place(blob_id: str) -> Path:
        if "/" in blob_id or "\0" in blob_id or blob_id in ("", ".", ".."):
            raise ImageError(f"blob id {blob_id!r} is not a file name")
        return top / blob_id

    def read_at(blob_id: str, offset: int, length: int) -> bytes:
        return _read_exactly(place(blob_id), blob_id, offset, length)

    return Blobs(read_at, lambda blob_id: place(blob_id).stat().st_size)


def file_blobs(path: str | os.PathLike[str]) -> Blobs:
    """One file that is the only blob, whatever the id that it is asked for by."""
    file = Path(path)

    def read_at(blob_id: str, offset: int, length: int) -> bytes:
        return _read_exactly(file, blob_id, offset, length)

    return Blobs(read_at, lambda _: file.stat().st_size)


def blobs_of(given: BlobsGiven | None) -> Blobs:
    """``given`` as a caller may have it: a directory, ``Blobs``, a ``read_at`` alone, or nothing.

    Reading without blobs is a ``BlobsError``; so is a size that only a ``Blobs`` could tell.
    """
    if given is None:
        return Blobs(_not_given, _size_not_given)
    if isinstance(given, Blobs):
        return given
    if isinstance(given, (str, os.PathLike)):
        return directory_blobs(given)
    return Blobs(given, _size_unknown)


def _read_exactly(path: Path, blob_id: str, offset: int, length: int) -> bytes:
    with path.open("rb") as f:
        data = os.pread(f.fileno(), length, offset)
        while len(data) < length:  # the kernel gives 2 GiB at most, and may give less
            more = os.pread(f.fileno(), length - len(data), offset + len(data))
            if not more:
                raise ImageError(f"blob {blob_id} ends before byte {offset + length}")
            data += more
    return data


def _not_given(blob_id: str, offset: int, length: int) -> bytes:
    raise BlobsError(f"blob {blob_id} is needed, and the image was opened without blobs")


def _size_not_given(blob_id: str) -> int:
    return len(_not_given(blob_id, 0, 0))


def _size_unknown(blob_id: str) -> int:
    raise BlobsError(f"the size of blob {blob_id} is needed: give Blobs(read_at, size)")
