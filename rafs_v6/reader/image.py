"""An image as a user of the library sees it: walk, look up, read, without mounting anything.

Safe for threads: each has its own decoder, and only data that were verified are shared.
Memory: the chunk maps of the blobs that were read, and decoded units of at most ``CACHE`` bytes.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator
from types import TracebackType
from typing import Any, AnyStr, Self

from rafs_v6._codec import ffi, lib
from rafs_v6.errors import ImageError, NotAFileError
from rafs_v6.format.blob_table import BlobInfo
from rafs_v6.reader.blobs import Blobs, BlobsGiven, blobs_of
from rafs_v6.reader.bootstrap import Bootstrap
from rafs_v6.reader.chunkmap import ChunkMap
from rafs_v6.reader.inode import ChunkRef, Inode
from rafs_v6.reader.resolve import path_error, raw_path, resolve
from rafs_v6.values import dataclass, field

CACHE = 16 << 20  # bytes; a unit has at most as many
_BUFFER = 128 << 10
_KINDS = {
    stat.S_IFLNK: "a symbolic link", stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device", stat.S_IFIFO: "a fifo", stat.S_IFSOCK: "a socket",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class BlobRange:
    """``size`` bytes from byte ``offset`` of the compressed blob ``blob_id``."""

    blob_id: str
    offset: int
    size: int


class Image:
    """A bootstrap with its blobs.  ``rafs_v6.open`` makes one; ``with`` closes it.

    Paths are ``str`` (UTF-8, other bytes as surrogates, as ``os.fsdecode`` gives them) or
    ``bytes``, and begin at the image's root with or without a slash.  Symbolic links on the way
    are followed inside the image; a link as the last component is not, but by ``resolve``:
    ``image.read(image.resolve(path))``.  Where an ``Inode`` is taken too, it is one of this image.

    Errors: ``FileNotFoundError``, ``NotADirectoryError`` and ``IsADirectoryError`` as of ``os``,
    ``NotAFileError`` for reading what is neither file nor directory, ``ImageError`` for damaged
    data, all with the path; errors of ``blobs`` as they are; ``ValueError`` after ``close``.

    Every chunk is verified where the image has a digest or a checksum of it.
    """

    def __init__(
        self, bootstrap: Bootstrap, blobs: BlobsGiven | None = None, *, name: str = ""
    ) -> None:
        """``bootstrap``: validated; owned from now on.  ``name``: for messages."""
        self.bootstrap = bootstrap
        self.source: Blobs = blobs_of(blobs)
        self._name = name
        self._closed = False
        self._maps: dict[int, ChunkMap] = {}
        self._maps_lock = threading.Lock()
        self._units = _Units()
        self._local = threading.local()

    def __repr__(self) -> str:
        what = "closed" if self._closed else f"{len(self.bootstrap.blobs)} blobs"
        return f"<rafs_v6.Image {self._name or 'without a name'!r}, {what}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """Let go of the bootstrap and of all that was decoded.  Again: nothing happens."""
        self._closed = True
        self._maps.clear()
        self._units.clear()
        self.bootstrap.close()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def blobs(self) -> tuple[BlobInfo, ...]:
        """The blob table, in its order (format.md 1.5)."""
        return self.bootstrap.blobs

    # -- the tree --------------------------------------------------------------------------------

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """(path, inode) of everything from b"/" on, parents before children, names in order.

        A file with several names comes as often, with equal inodes.
        """
        self._check_open()
        return self.bootstrap.walk()

    def lookup(self, path: str | bytes) -> Inode:
        """What ``path`` names, as ``os.lstat``: a symbolic link is the link itself."""
        self._check_open()
        return resolve(self.bootstrap, path, follow=False)[1]

    def resolve(self, path: AnyStr) -> AnyStr:
        """The path without links, dots and double slashes, as ``os.path.realpath``, but of what
        is there; of the type of ``path``.  ``OSError`` (ELOOP) for more than 40 links."""
        self._check_open()
        return _like(path, resolve(self.bootstrap, path)[0])

    def scandir(self, path: AnyStr) -> Iterator[tuple[AnyStr, Inode]]:
        """(name, inode) of the entries of a directory, in the order of their bytes."""
        boot = self.bootstrap
        inode = self.lookup(path)
        if not inode.is_dir:
            raise path_error(errno.ENOTDIR, path)
        return (
            (_like(path, entry.name), boot.inode(entry.nid))
            for entry in boot.read_dir(inode) if entry.name not in (b".", b"..")
        )  # fmt: skip

    def listdir(self, path: AnyStr) -> list[AnyStr]:
        """The names in a directory, in the order of their bytes, without dots."""
        return [name for name, _ in self.scandir(path)]

    def readlink(self, path: AnyStr) -> AnyStr:
        """The target of a symbolic link, as it stands there; ``OSError`` (EINVAL) for others."""
        inode = self.lookup(path)
        if not inode.is_symlink:
            raise path_error(errno.EINVAL, path)
        return _like(path, self.bootstrap.read_link(inode))

    def xattrs(self, path: str | bytes | Inode) -> dict[bytes, bytes]:
        """Full names to values (format.md 1.12)."""
        return self.bootstrap.xattrs(self._inode(path))

    # -- data ------------------------------------------------------------------------------------

    def read(self, path: str | bytes | Inode) -> bytes:
        """The whole content of a regular file."""
        return b"".join(self.iter_file(path))

    def iter_file(self, path: str | bytes | Inode) -> Iterator[bytes]:
        """The content of a regular file, a chunk (``bootstrap.chunk_size`` bytes) at a time."""
        inode = self._file(path)
        return (self._read(path, ref, 0, ref.size) for ref in self.bootstrap.chunks(inode))

    def open(self, path: str | bytes | Inode) -> io.BufferedReader:
        """A regular file as a seekable binary stream; chunks are fetched as they are read.

        As any stream it has one position: each thread opens its own.
        """
        return io.BufferedReader(_File(self, path, self._file(path)), _BUFFER)

    open_file = open

    def blob_ranges(self, path: str | bytes | Inode) -> list[BlobRange]:
        """The compressed bytes that reading a regular file needs: by blob, ascending, none twice.

        A batch or a zran context is needed whole (format.md 2.6, 2.7).
        """
        units: set[tuple[int, int]] = set()
        for ref in self.bootstrap.chunks(self._file(path)):
            found = self._map(path, ref.blob_index).units_of(ref.flat_off, ref.size)
            units.update((ref.blob_index, number) for number in found)
        places = sorted(
            (blob, unit.coff, unit.coff + unit.clen) for blob, number in units
            for unit in (self.chunk_map(blob).unit(number),)
        )  # fmt: skip
        ranges: list[list[int]] = []
        for blob, start, end in places:
            if ranges and ranges[-1][0] == blob and start <= ranges[-1][2]:
                ranges[-1][2] = max(ranges[-1][2], end)
            else:
                ranges.append([blob, start, end])
        return [BlobRange(self.blobs[b].blob_id, start, end - start) for b, start, end in ranges]

    def chunk_map(self, blob_index: int) -> ChunkMap:
        """The chunk map of a blob of the table, loaded once."""
        self._check_open()
        chunks = self._maps.get(blob_index)
        if chunks is None:
            with self._maps_lock:
                chunks = self._maps.get(blob_index)
                if chunks is None:
                    chunks = ChunkMap.load(
                        self.blobs[blob_index], self.source.read_at, self.bootstrap,
                        blob_size=self.source.size,
                    )  # fmt: skip
                    self._maps[blob_index] = chunks
        return chunks

    # -- within ----------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"{self!r}: the image is closed")

    def _inode(self, path: str | bytes | Inode) -> Inode:
        self._check_open()
        return path if isinstance(path, Inode) else self.lookup(path)

    def _file(self, path: str | bytes | Inode) -> Inode:
        inode = self._inode(path)
        name = f"inode {path.nid}" if isinstance(path, Inode) else path
        if inode.is_dir:
            raise path_error(errno.EISDIR, name)
        if not inode.is_reg:
            kind = _KINDS.get(stat.S_IFMT(inode.mode), "a special file")
            raise NotAFileError(errno.EINVAL, f"{kind}, not a regular file", name)
        return inode

    def _map(self, path: str | bytes | Inode, blob_index: int) -> ChunkMap:
        try:
            return self.chunk_map(blob_index)
        except ImageError as error:
            blob_id = self.blobs[blob_index].blob_id
            raise _named(ImageError(f"blob {blob_id}: {error}"), path) from error

    def _read(self, path: str | bytes | Inode, ref: ChunkRef, skip: int, size: int) -> bytes:
        """``size`` bytes from byte ``skip`` of a chunk of the file at ``path``."""
        chunks = self._map(path, ref.blob_index)
        start = ref.flat_off + skip
        try:
            data = b"".join(self._pieces(chunks, start, start + size))
            if len(data) != size:
                raise ImageError(f"the chunk at {start:#x} has {len(data)} of {size} bytes")
        except ImageError as error:
            raise _named(error, path) from error
        return data

    def _pieces(self, chunks: ChunkMap, start: int, end: int) -> Iterator[memoryview]:
        for number in chunks.units_of(start, end - start):
            unit, decoded = chunks.unit(number), self._unit(chunks, number)
            for i in range(chunks.chunk_at(start, unit), unit.first + unit.count):
                chunk = chunks.blob.chunks[i]
                if chunk.uoff >= end:
                    break
                low, high = max(start, chunk.uoff), min(end, chunk.uoff + chunk.usize)
                if low >= high:
                    continue
                data = decoded.data[chunk.unit_off : chunk.unit_off + chunk.usize]
                if i not in decoded.verified:
                    if lib.rafs_chunk_verify(chunks.blob, i, ffi.from_buffer("uint8_t[]", data)):
                        raise ImageError(
                            f"blob {chunks.info.blob_id}: chunk {i} is not "
                            f"{bytes(chunk.digest).hex()}"
                        )
                    decoded.verified.add(i)
                yield data[low - chunk.uoff : high - chunk.uoff]

    def _unit(self, chunks: ChunkMap, number: int) -> _Decoded:
        key = chunks.info.index, number
        decoded = self._units.get(key)
        if decoded is None:
            decoded = self._decode(chunks, number)
            self._units.put(key, decoded)
        return decoded

    def _decode(self, chunks: ChunkMap, number: int) -> _Decoded:
        unit, blob_id = chunks.unit(number), chunks.info.blob_id
        compressed = self.source.read_at(blob_id, unit.coff, unit.clen)
        if len(compressed) != unit.clen:
            raise ImageError(f"blob {blob_id}: {len(compressed)} bytes came for {unit.clen}")
        out = bytearray(unit.ulen)
        rc = lib.rafs_unit_decode(
            self._decoder(), chunks.blob, number, compressed, len(compressed),
            ffi.from_buffer("uint8_t[]", out), len(out),
        )  # fmt: skip
        if rc < 0:
            raise ImageError(f"blob {blob_id}: unit {number} at {unit.coff:#x} does not decode")
        return _Decoded(memoryview(out).toreadonly())

    def _decoder(self) -> Any:
        """This thread's: a decoder is for one call at a time."""
        decoder = getattr(self._local, "decoder", None)
        if decoder is None:
            decoder = lib.rafs_decoder_new()
            if decoder == ffi.NULL:
                raise MemoryError("decoder")
            decoder = self._local.decoder = ffi.gc(decoder, lib.rafs_decoder_free)
        return decoder


@dataclass(slots=True)
class _Decoded:
    """``verified``: chunks of the unit that match their digests, or have none."""

    data: memoryview
    verified: set[int] = field(default_factory=set)


class _Units:
    """Decoded units, the last used ones, of at most ``CACHE`` bytes together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._units: OrderedDict[tuple[int, int], _Decoded] = OrderedDict()
        self._size = 0

    def get(self, key: tuple[int, int]) -> _Decoded | None:
        with self._lock:
            unit = self._units.get(key)
            if unit is not None:
                self._units.move_to_end(key)
            return unit

    def put(self, key: tuple[int, int], unit: _Decoded) -> None:
        with self._lock:
            old = self._units.pop(key, None)
            self._size += len(unit.data) - (len(old.data) if old else 0)
            self._units[key] = unit
            while self._size > CACHE and len(self._units) > 1:
                self._size -= len(self._units.popitem(last=False)[1].data)

    def clear(self) -> None:
        with self._lock:
            self._units.clear()
            self._size = 0


class _File(io.RawIOBase):
    def __init__(self, image: Image, path: str | bytes | Inode, inode: Inode) -> None:
        self.name = f"inode {path.nid}" if isinstance(path, Inode) else path
        self.mode = "rb"
        self._image, self._path = image, path
        self._refs = list(image.bootstrap.chunks(inode))
        self._size = inode.size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check()
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}
        if whence not in bases:
            raise ValueError(f"whence is {whence}, it must be 0, 1 or 2")
        if bases[whence] + offset < 0:
            raise OSError(errno.EINVAL, "a negative position", self.name)
        self._at = bases[whence] + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._check()
        target = memoryview(buffer).cast("B")
        if self._at >= self._size or not target:
            return 0
        index, skip = divmod(self._at, self._image.bootstrap.chunk_size)
        ref = self._refs[index]
        data = self._image._read(self._path, ref, skip, min(ref.size - skip, len(target)))
        target[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _check(self) -> None:
        if self.closed:
            raise ValueError("the file is closed")


def _like(path: AnyStr, name: bytes) -> AnyStr:
    """``name`` of the type of ``path``."""
    if isinstance(path, bytes):
        return name
    return name.decode("utf-8", "surrogateescape")


def _named(error: ImageError, path: str | bytes | Inode) -> ImageError:
    return error.at(f"inode {path.nid}" if isinstance(path, Inode) else raw_path(path))
