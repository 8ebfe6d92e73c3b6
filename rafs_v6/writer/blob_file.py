"""The file of a native blob: chunk data, CCT, digests, bootstrap, TOC (format.md 2.2, 2.8, 2.9).

On any error nothing is left under a file's final name.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from rafs_v6._codec import ffi, lib
from rafs_v6._writer import lib as build
from rafs_v6.format.erofs import (
    Compressor,
    TocEntry,
    TocFlags,
)
from rafs_v6.writer.background import Background
from rafs_v6.writer.errors import BuildError

TAR_HEADER = 512
_OCTAL_MAX = 8 << 30
_LEVEL = 3
_FLUSH = 1 << 20  # bytes that are written, and sent on their way to the disk, at once
READER_WAIT_S = 60  # for someone to open a pipe that the blob goes to


def tar_header(name: bytes, size: int) -> bytes:
    """The header that follows a part of a blob: only name, size, time, type and checksum."""
    out = bytearray(TAR_HEADER)
    out[: len(name)] = name
    if size < _OCTAL_MAX:
        out[124:136] = b"%011o\0" % size
    else:
        out[124:136] = b"\x80" + size.to_bytes(11, "big")
    out[136:148] = b"0" * 11 + b"\0"
    out[156:157] = b"0"
    out[257:265] = b"ustar  \0"
    out[148:156] = b" " * 8
    out[148:156] = b"%07o\0" % sum(out)
    return bytes(out)


def shrink(compressor: Compressor, data: bytes | bytearray) -> tuple[Compressor, bytes | bytearray]:
    """``data`` compressed, or as they are when that does not make them smaller."""
    if compressor is Compressor.NONE:
        return compressor, data
    room = lib.rafs_compress_bound(compressor, len(data))
    out = ffi.new("uint8_t[]", room)
    size = lib.rafs_compress(
        compressor, _LEVEL, ffi.from_buffer("uint8_t[]", data), len(data), out, room
    )
    if size <= 0 or size >= len(data):
        return Compressor.NONE, data
    return compressor, bytes(ffi.buffer(out, size))


def toc_entry(
    name: bytes, digest: bytes, offset: int, compressed: int, uncompressed: int, flag: int
) -> bytes:
    name = name.ljust(16, b"\0")
    return TocEntry(flag, 0, name, digest, offset, compressed, uncompressed, bytes(48)).pack()


def toc_flag(compressor: Compressor) -> int:
    return {
        Compressor.NONE: TocFlags.RAW,
        Compressor.ZSTD: TocFlags.ZSTD,
        Compressor.LZ4_BLOCK: TocFlags.LZ4_BLOCK,
    }[compressor]


class BlobFile:
    """Appends to a file that will be ``target``, and hashes what counts for the blob id.

    A regular file has a temporary name beside ``target`` until ``publish``.  A
    pipe or a device, which nydus-snapshotter names as ``--blob``, is written
    to as it is: its reader sees every byte at once, and the end of the file
    also when the build fails.
    """

    def __init__(self, target: Path | IO[bytes]) -> None:
        """``target``: a name, or a file of the caller's, which is not closed."""
        self._file: IO[bytes]
        self._hash = hashlib.sha256()
        self._object_hash: hashlib._Hash | None = None  # another from where it differs
        self.size = 0
        self._target = target
        self._name: Path | None = None
        self._syncing: Background | None = None
        self._is_ours = isinstance(target, Path)
        if not isinstance(target, Path):
            self._file = target
            return
        if is_stream(target):
            self._file = os.fdopen(_open_stream(target), "wb")
            return
        if not target.parent.is_dir():
            raise BuildError(f"{target.parent} is not a directory: make it first")
        name = target.parent / f".nydus-image-{os.urandom(6).hex()}"
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(fd, "wb", buffering=_FLUSH)
        self._name = name

    def write(self, data: bytes | bytearray | memoryview, *, hashed: bool = True) -> None:
        try:
            self._file.write(data)
        except BrokenPipeError as error:
            raise self._reader_gone() from error
        if self._name is not None and len(data) >= _FLUSH:
            build.rafs_build_flush(self._file.fileno(), self.size)
        self.size += len(data)
        if hashed:
            self._hash.update(data)
        elif self._object_hash is None:
            self._object_hash = self._hash.copy()
        if self._object_hash is not None:
            self._object_hash.update(data)

    @property
    def raw(self) -> IO[bytes]:
        """The file itself, for writers that neither count nor hash."""
        return self._file

    def reader(self) -> int:
        """The descriptor of a file that is still being written, with all that was written."""
        if self._name is None:
            raise BuildError(f"{self._target} is a pipe, which cannot be read again")
        self._file.flush()
        return self._file.fileno()

    def digest(self) -> bytes:
        """sha256 of what was hashed so far."""
        return self._hash.copy().digest()

    def object_digest(self) -> bytes:
        """sha256 of all that was written."""
        return (self._object_hash or self._hash).digest()

    @property
    def is_stream(self) -> bool:
        """Its reader sees every byte at once, and waits for the end."""
        return self._name is None

    def begin_sync(self) -> None:
        """All was written: it goes to the disk beside the caller, until ``end_sync``."""
        if self._name is not None and self._syncing is None:
            self._file.flush()
            self._syncing = Background()
            self._syncing.start(partial(os.fsync, self._file.fileno()))

    def end_sync(self) -> None:
        """All that was written is on the disk; it has no other name yet."""
        self.begin_sync()
        if self._syncing is not None:
            self._syncing.finish()

    def publish(self, path: Path) -> None:
        """Make it ``path``, which lies in the directory of the target."""
        if self._name is None:
            try:
                if self._is_ours:
                    self._file.close()
                else:
                    self._file.flush()
            except BrokenPipeError as error:
                raise self._reader_gone() from error
            return
        self.end_sync()
        os.fchmod(self._file.fileno(), 0o644)
        self._file.close()
        self._name.replace(path)
        self._name = None

    def discard(self) -> None:
        """Remove the temporary file, unless it was published; end a stream."""
        if self._name is not None:
            name, self._name = self._name, None
            name.unlink(missing_ok=True)
        if self._syncing is not None:
            self._syncing.close()
        # What is still buffered has no reader, or no room; that error was reported.
        if self._is_ours:
            with contextlib.suppress(OSError):
                self._file.close()

    def _reader_gone(self) -> BuildError:
        return BuildError(f"{self._target}: who read from this pipe has gone away")


def is_stream(path: Path) -> bool:
    """A pipe, or a device: what it is written goes to somebody who waits for the end."""
    # /dev/stdout may be a regular file, whose place a rename would take in /dev.
    if path.is_relative_to("/dev"):
        return True
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return False
    if not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        raise BuildError(f"{path} is neither a file nor a pipe: choose another name")
    return True


def _open_stream(path: Path) -> int:
    deadline = time.monotonic() + READER_WAIT_S
    while True:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > deadline:
                raise BuildError(
                    f"{path}: nobody has read from this pipe for {READER_WAIT_S} s"
                ) from error
            time.sleep(0.02)
        else:
            os.set_blocking(fd, True)
            return fd


@contextlib.contextmanager
def ended_on_error(target: Path | None) -> Iterator[None]:
    """When the block fails before it opens the pipe ``target``, its reader sees the end."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError, BuildError):
            if target is not None and is_stream(target):
                os.close(os.open(target, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY))
        raise


def write_atomically(path: Path, pieces: Iterable[bytes | bytearray]) -> None:
    out = BlobFile(path)
    try:
        for piece in pieces:
            out.write(piece, hashed=False)
        out.publish(path)
    finally:
        out.discard()


@contextlib.contextmanager
def bootstrap_at(
    target: Path, pieces: Iterable[bytes | bytearray]
) -> Iterator[Callable[[], Path]]:  # fmt: skip
    """Write the file ``target``, or one in that directory that its sha256 names.

    Gives a call that has it appear, and returns its path; without that nothing is left.
    """
    in_directory = target.is_dir()
    out = BlobFile(target / "bootstrap" if in_directory else target)

    def appear() -> Path:
        path = target / out.digest().hex() if in_directory else target
        out.publish(path)
        return path

    try:
        for piece in pieces:
            out.write(piece, hashed=in_directory)
        out.end_sync()
        yield appear
    finally:
        out.discard()


def write_bootstrap_to(target: Path, pieces: Iterable[bytes | bytearray]) -> Path:
    """``bootstrap_at``, at once."""
    with bootstrap_at(target, pieces) as appear:
        return appear()
