"""Where the bootstrap of an image is: a file of its own, or inside a blob (format.md 2.10).

The image may be given as a path, as bytes, or as a seekable binary stream.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from rafs_v6.errors import ImageError
from rafs_v6.faults import STRICT, Checks
from rafs_v6.format.blob_table import is_inlined_id
from rafs_v6.format.erofs import (
    DEVICE_SLOTS_OFFSET,
    EROFS_SUPER_MAGIC_V1,
    EROFS_SUPER_OFFSET,
    RAFS_V5_MAGIC,
    BlobFeatures,
    BlobRecord,
    DeviceSlot,
)
from rafs_v6.format.toc import (
    BOOT_NAME,
    TAR_HEADER,
    TOC_NAME,
    find_bootstrap,
    is_tar_header,
    tar_header,
)
from rafs_v6.reader.blobs import Blobs, file_blobs
from rafs_v6.reader.bootstrap import Bootstrap
from rafs_v6.sha256 import file_sha256
from rafs_v6.values import dataclass, replace

Given = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO


@dataclass(frozen=True, slots=True)
class Source:
    """``shown``: for messages; ``name``: the id of the blob if it is one; ``size``: bytes.

    ``read_at(offset, length)``: what is there, fewer bytes at the end; from any thread.
    ``file``: where it can be mapped.
    """

    shown: str
    name: str
    size: int
    read_at: Callable[[int, int], bytes]
    file: Path | None = None

    @classmethod
    def of(cls, given: Given) -> Source:
        """``OSError`` for a path that cannot be read; a fifo or device is an ``ImageError``."""
        if isinstance(given, (str, os.PathLike)):
            return _file_source(Path(given))
        if isinstance(given, (bytes, bytearray, memoryview)):
            data = memoryview(given).cast("B")
            return cls("bytes", "bytes", len(data), lambda off, n: bytes(data[off : off + n]))
        return _stream_source(given)

    def blobs(self) -> Blobs:
        """This object as the only blob."""
        if self.file is not None:
            return file_blobs(self.file)

        def read_at(blob_id: str, offset: int, length: int) -> bytes:
            data = self.read_at(offset, length)
            if len(data) != length:
                raise ImageError(f"blob {blob_id} ends before byte {offset + length}")
            return data

        return Blobs(read_at, lambda _: self.size)


def _file_source(path: Path) -> Source:
    # Without O_NONBLOCK a fifo would wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(found.st_mode):
        raise ImageError(f"{path}: neither a bootstrap nor a blob: not a regular file")

    def read_at(offset: int, length: int) -> bytes:
        with path.open("rb") as f:
            return os.pread(f.fileno(), length, offset)

    return Source(str(path), path.name, found.st_size, read_at, path)


def _stream_source(stream: BinaryIO) -> Source:
    lock = threading.Lock()

    def read_at(offset: int, length: int) -> bytes:
        with lock:
            stream.seek(offset)
            return stream.read(length)

    name = getattr(stream, "name", None)
    shown = name if isinstance(name, str) else "stream"
    return Source(shown, os.path.basename(shown), stream.seek(0, os.SEEK_END), read_at)


def locate_bootstrap(
    given: Given | Source, check: Checks = STRICT
) -> tuple[Bootstrap, bool]:
    """The bootstrap, its tree not validated yet, and whether it was inside a blob.

    Raises ``ImageError`` for what is neither.  To a ``check`` that collects faults such a file is
    a damaged bootstrap, unless it ends as blobs do.
    """
    source = given if isinstance(given, Source) else Source.of(given)
    tail = source.read_at(max(0, source.size - TAR_HEADER), TAR_HEADER)
    head = source.read_at(0, EROFS_SUPER_OFFSET + 4)
    # A blob without data begins with the bootstrap inside it, so the end is looked at first.
    if tar_header(tail)[0] not in (BOOT_NAME, TOC_NAME) and (
        _begins_as_bootstrap(head) or (check is not STRICT and not is_tar_header(tail))
    ):
        if source.file is not None:
            return Bootstrap.from_file(source.file, check), False
        return Bootstrap.from_bytes(source.read_at(0, source.size), check), False
    inner = find_bootstrap(
        lambda _, offset, length: source.read_at(offset, length), source.name, source.size
    )
    return Bootstrap.from_bytes(inner, check), True


def _begins_as_bootstrap(head: bytes) -> bool:
    """By the magic numbers; what is too short for one is left to the reader of bootstraps."""
    if len(head) < EROFS_SUPER_OFFSET + 4:
        return True
    (v6,) = struct.unpack_from("<I", head, EROFS_SUPER_OFFSET)
    (v5,) = struct.unpack_from("<I", head)
    return bool(v6 == EROFS_SUPER_MAGIC_V1 or v5 == RAFS_V5_MAGIC)


def adopt_own_blob(given: Given | Source, bootstrap: Bootstrap, blobs: Blobs) -> Blobs:
    """A bootstrap inside a blob cannot know the blob's name: it is that of ``given``.

    Puts the name into ``bootstrap``; ``blobs`` with ``given`` among them (format.md 2.9).
    """
    if not any(b.features & BlobFeatures.INLINED_FS_META for b in bootstrap.blobs):
        return blobs
    source = given if isinstance(given, Source) else Source.of(given)
    infos = []
    for info in bootstrap.blobs:
        if is_inlined_id(info.blob_id):
            infos.append(replace(info, blob_id=source.name, meta_blob_id=source.name))
        elif info.is_separate and info.features & BlobFeatures.INLINED_FS_META:
            infos.append(replace(info, meta_blob_id=source.name))
        else:
            infos.append(info)
    bootstrap.blobs = tuple(infos)
    own, name = source.blobs(), source.name

    def read_at(blob_id: str, offset: int, length: int) -> bytes:
        return (own if blob_id == name else blobs).read_at(blob_id, offset, length)

    return Blobs(read_at, lambda blob_id: (own if blob_id == name else blobs).size(blob_id))


def standalone_bootstrap(path: Path) -> bytes | None:
    """The bootstrap inside the blob at ``path``, so that it stands alone: it names the blob.

    None when the file is a bootstrap itself.  The id is the file's name if that is a SHA-256, else
    that of its content.  Raises ``ImageError`` for what is neither.
    """
    bootstrap, inside = locate_bootstrap(path)
    if not inside:
        return None
    blob_id = path.name
    if not re.fullmatch("[0-9a-f]{64}", blob_id):
        blob_id = file_sha256(path)
    data = bytearray(bootstrap.data)
    for info in bootstrap.blobs:
        slot = DEVICE_SLOTS_OFFSET + info.index * DeviceSlot.SIZE
        at = bootstrap.tables.ext.blob_table_offset + info.index * BlobRecord.SIZE
        record = BlobRecord.unpack(bootstrap.data, at)
        if not info.features & BlobFeatures.INLINED_FS_META:
            continue
        if is_inlined_id(info.blob_id):
            record = replace(record, blob_id=blob_id.encode())
        elif info.is_separate:
            record = replace(record, blob_meta_digest=bytes.fromhex(blob_id))
        record = replace(record, features=record.features & ~BlobFeatures.INLINED_FS_META)
        data[at : at + BlobRecord.SIZE] = record.pack()
        data[slot : slot + len(record.blob_id)] = record.blob_id
    return bytes(data)
