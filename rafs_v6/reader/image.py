"""An image as a library user sees it: open, walk, read, without mounting anything."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from rafs_v6._codec import ffi, lib
from rafs_v6.errors import ImageError
from rafs_v6.format.toc import ReadAt
from rafs_v6.reader.bootstrap import Bootstrap, ChunkRef, Inode
from rafs_v6.reader.chunkmap import ChunkMap

_CACHED_UNITS = 8


class Image:
    """A bootstrap with its blobs; chunk maps are loaded when a file is first read.

    Every chunk is verified where the image has a digest for it.
    """

    def __init__(
        self, bootstrap: Bootstrap, read_at: ReadAt | None, blob_size: Callable[[str], int] | None
    ) -> None:
        self.bootstrap = bootstrap
        self._read_at = read_at
        self._blob_size = blob_size
        self._decoder = ffi.gc(lib.rafs_decoder_new(), lib.rafs_decoder_free)
        self._map = lru_cache(maxsize=None)(self._load_map)
        self._unit = lru_cache(maxsize=_CACHED_UNITS)(self._decode_unit)

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """(path, inode) of everything, parents first."""
        return self.bootstrap.walk()

    def lookup(self, path: bytes | str) -> Inode:
        return self.bootstrap.lookup(path)

    def read(self, path: bytes | str) -> bytes:
        """The whole content of a regular file; ``IsADirectoryError`` and the like for others."""
        return b"".join(self.iter_file(self.lookup(path)))

    def iter_file(self, inode: Inode) -> Iterator[bytes]:
        """The content of a regular file, chunk by chunk."""
        return (self._read_chunk(ref) for ref in self.bootstrap.chunks(inode))

    def open_file(self, path: bytes | str) -> io.BufferedReader:
        """A readable, seekable file; chunks are fetched as they are read."""
        return io.BufferedReader(_File(self, self.lookup(path)))

    def chunk_map(self, blob_index: int) -> ChunkMap:
        return self._map(blob_index)

    def _load_map(self, blob_index: int) -> ChunkMap:
        if self._read_at is None or self._blob_size is None:
            raise ValueError("the image was opened without blobs")
        return ChunkMap.load(
            self.bootstrap.blobs[blob_index],
            self._read_at,
            self.bootstrap,
            blob_size=self._blob_size,
        )

    def _decode_unit(self, blob_index: int, index: int) -> bytes:
        assert self._read_at is not None
        chunks = self._map(blob_index)
        unit = chunks.unit(index)
        blob_id = self.bootstrap.blobs[blob_index].blob_id
        compressed = self._read_at(blob_id, unit.coff, unit.clen)
        out = bytearray(unit.ulen)
        target = ffi.from_buffer("uint8_t[]", out)
        rc = lib.rafs_unit_decode(
            self._decoder, chunks.blob, index, compressed, len(compressed), target, len(out)
        )
        if rc < 0:
            raise ImageError(f"blob {blob_id}: unit {index} does not decode")
        return bytes(out)

    def _read_chunk(self, ref: ChunkRef) -> bytes:
        chunks = self._map(ref.blob_index)
        parts = []
        for index in chunks.units_of(ref.flat_off, ref.size):
            unit = chunks.unit(index)
            unit_data = self._unit(ref.blob_index, index)
            for i in range(unit.first, unit.first + unit.count):
                chunk = chunks.blob.chunks[i]
                low = max(ref.flat_off, chunk.uoff)
                high = min(ref.flat_off + ref.size, chunk.uoff + chunk.usize)
                if low >= high:
                    continue
                data = unit_data[chunk.unit_off : chunk.unit_off + chunk.usize]
                if lib.rafs_chunk_verify(chunks.blob, i, data):
                    blob_id = self.bootstrap.blobs[ref.blob_index].blob_id
                    digest = bytes(chunk.digest).hex()
                    raise ImageError(f"blob {blob_id}: chunk {i} is not {digest}")
                parts.append(data[low - chunk.uoff : high - chunk.uoff])
        data = b"".join(parts)
        if len(data) != ref.size:
            raise ImageError(f"chunk at {ref.flat_off:#x} has {len(data)} of {ref.size} bytes")
        return data


class _File(io.RawIOBase):
    def __init__(self, image: Image, inode: Inode) -> None:
        self._image = image
        self._refs = list(image.bootstrap.chunks(inode))
        self._size = inode.size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("a negative position")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._at >= self._size:
            return 0
        chunk_size = self._image.bootstrap.chunk_size
        index, skip = divmod(self._at, chunk_size)
        data = self._image._read_chunk(self._refs[index])[skip : skip + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def open_image(
    path: str | os.PathLike[str], *, blobs: str | os.PathLike[str] | None = None
) -> Image:
    """Open and validate the bootstrap at ``path``; ``blobs``: the directory with the blobs.

    Raises ``ImageError``. Without ``blobs`` the tree can be walked but no file read.
    """
    bootstrap = Bootstrap.from_file(path)
    bootstrap.validate()
    if blobs is None:
        return Image(bootstrap, None, None)
    directory = Path(blobs)
    return Image(bootstrap, directory_reader(directory), lambda i: (directory / i).stat().st_size)


def directory_reader(directory: Path) -> ReadAt:
    """``ReadAt`` over a directory of blobs named by id."""

    def read_at(blob_id: str, offset: int, length: int) -> bytes:
        if "/" in blob_id or blob_id in ("", ".", ".."):
            raise ImageError(f"blob id {blob_id!r} is no file name")
        with (directory / blob_id).open("rb") as f:
            data = os.pread(f.fileno(), length, offset)
        if len(data) != length:
            raise ImageError(f"blob {blob_id} ends before byte {offset + length}")
        return data

    return read_at
