"""Chunk maps: which compressed bytes of a blob make up which bytes of its flat form.

Loading costs one ranged read (CCT and its header), and two more only when the
digests are in the blob and not in the bootstrap.  Everything that comes from
the blob is checked: header against blob table, records by the C decoder.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Self

from rafs_v6._codec import ffi, lib
from rafs_v6.errors import ImageError
from rafs_v6.format.blob_table import BlobInfo
from rafs_v6.format.erofs import (
    CCT_HEADER_SIZE,
    CCT_MAGIC,
    EROFS_BLOCK,
    MAX_CHUNK_SIZE,
    BlobFeatures,
    CctHeader,
    Compressor,
    round_up,
)
from rafs_v6.format.toc import (
    DIGEST_NAME,
    MAX_UNCOMPRESSED,
    ReadAt,
    decompress,
    parse_toc,
    read_part,
    read_toc,
)
from rafs_v6.reader.bootstrap import Bootstrap
from rafs_v6.values import dataclass

TARFS_WINDOW = 1 << 20
_TARFS_WINDOWS = 1 << 16  # that a tar of 1 TiB has, the largest
_ERROR_TEXT = 256
_DIGEST_SIZE = 32


@dataclass(frozen=True, slots=True)
class Unit:
    """The least that can be fetched alone: ``clen`` compressed bytes at ``coff``, chunks
    [first, first + count)."""

    coff: int
    clen: int
    ulen: int
    first: int
    count: int
    flags: int


class ChunkMap:
    """A blob's chunks and units, decoded.  ``blob``: cdata of ``struct rafs_blob *``.

    ``flat_size``: bytes of the flat file, what the kernel's device must have.
    ``digest_source``: "bootstrap", "blob.digest" or "none".
    """

    def __init__(self, info: BlobInfo, count: int, flat_size: int) -> None:
        self.info = info
        self.flat_size = flat_size
        self.digest_source = "none"
        self.cct = b""
        self.header = b""
        self._chunks = ffi.new("struct rafs_chunk[]", count)
        self._units = ffi.new("struct rafs_unit[]", count)
        self.blob: Any = ffi.new("struct rafs_blob *")

    @classmethod
    def load(
        cls,
        info: BlobInfo,
        read_at: ReadAt,
        bootstrap: Bootstrap,
        *,
        blob_size: Callable[[str], int],
    ) -> Self:
        """``blob_size``: bytes of a stored object, asked only for what has a TOC at its end."""
        if info.is_tarfs:
            return cls._identity(info)
        flat_size = round_up(info.uncompressed_size, EROFS_BLOCK)
        if info.chunk_count > flat_size // EROFS_BLOCK:  # each begins in a block of its own
            raise ImageError(f"{info.chunk_count} chunks in {flat_size} bytes of data")
        cct = _read_cct(info, read_at)  # first: memory is spent when the blob has that many
        chunk_map = cls(info, info.chunk_count, flat_size)
        chunk_map._decode(*cct)
        chunk_map._take_digests(bootstrap, read_at, blob_size)
        return chunk_map

    @classmethod
    def _identity(cls, info: BlobInfo) -> Self:
        """The tar is the flat file: windows of it, without digests."""
        size, window = info.uncompressed_size, TARFS_WINDOW
        while window < MAX_CHUNK_SIZE and size > window * _TARFS_WINDOWS:
            window *= 2  # memory does not grow with a size that is only stated
        chunk_map = cls(info, -(-size // window), size)
        rc = lib.rafs_identity_map(
            size, window, chunk_map._chunks, chunk_map._units, chunk_map.blob
        )
        if rc:
            raise ImageError(f"a tar of {size} bytes cannot be mapped")
        return chunk_map

    def _decode(self, cct: bytes, header_block: bytes, header: CctHeader) -> None:
        info = self.info
        self.cct, self.header = cct, header_block
        cct_info = ffi.new("struct rafs_cct_info *")
        cct_info.features = int(info.features)
        cct_info.nchunks = info.chunk_count
        cct_info.data_size = info.data_size
        cct_info.flat_size = info.uncompressed_size
        cct_info.ctx_off = header.context_offset
        cct_info.ctx_size = header.context_size
        cct_info.nctx = header.context_count
        text = ffi.new("char[]", _ERROR_TEXT)
        self._cct_buffer = ffi.from_buffer("uint8_t[]", cct)  # dicts point into it
        rc = lib.rafs_cct_decode(
            self._cct_buffer, len(cct), cct_info, self._chunks, self._units, self.blob,
            text, _ERROR_TEXT,
        )
        if rc == -errno.ENOMEM:
            raise MemoryError("chunk map")
        if rc:
            raise ImageError(f"chunk map: {ffi.string(text).decode('utf-8', 'replace') or rc}")
        self.blob.compressor = info.compressor
        self.blob.digester = info.digester
        if info.is_encrypted:
            self.blob.encrypted = 1
            ffi.memmove(self.blob.key, info.key, len(info.key))
            ffi.memmove(self.blob.iv, info.iv, len(info.iv))

    def _take_digests(
        self, bootstrap: Bootstrap, read_at: ReadAt, blob_size: Callable[[str], int]
    ) -> None:
        table = bootstrap.chunk_table
        if len(table):
            with ffi.from_buffer("uint8_t[]", table) as records:
                count = lib.rafs_chunk_table_apply(
                    records, len(table), self.info.index, self.blob
                )
            if count > 0:
                self.digest_source = "bootstrap"
                return
        if self.info.features & BlobFeatures.INLINED_CHUNK_DIGEST:
            array = _read_digests(self.info, read_at, blob_size)
            if lib.rafs_digest_array_apply(array, len(array), self.blob) > 0:
                self.digest_source = DIGEST_NAME

    # -- looking up ------------------------------------------------------------------------------

    @property
    def nchunks(self) -> int:
        return int(self.blob.nchunks)

    @property
    def nunits(self) -> int:
        return int(self.blob.nunits)

    def unit(self, index: int) -> Unit:
        u = self._units[index]
        return Unit(u.coff, u.clen, u.ulen, u.first, u.count, u.flags)

    def chunk_at(self, off: int, unit: Unit) -> int:
        """The first chunk of ``unit`` that ends behind flat byte ``off``."""
        return max(unit.first, int(lib.rafs_chunk_find(self.blob, off)))

    def units_of(self, off: int, length: int) -> range:
        """Units that hold flat bytes [off, off + length)."""
        first = lib.rafs_chunk_find(self.blob, off)
        if first >= self.nchunks or length <= 0:
            return range(0)
        last = min(lib.rafs_chunk_find(self.blob, off + length - 1), self.nchunks - 1)
        if self._chunks[last].uoff >= off + length:
            last -= 1
        if last < first:
            return range(0)
        return range(self._chunks[first].unit, self._chunks[last].unit + 1)

    def unit_range(self, index: int) -> tuple[int, int]:
        """Flat bytes [off, end) of a unit, padded to whole pages, inside the flat file."""
        u = self._units[index]
        last = self._chunks[u.first + u.count - 1]
        end = round_up(last.uoff + last.usize, EROFS_BLOCK)
        return self._chunks[u.first].uoff, min(end, self.flat_size)

    def decoded_parts(self) -> tuple[Any, ...]:
        """All that decoding and verifying depend on: equal bytes, equal data.

        Buffers, not copies: there are 128 bytes a chunk."""
        return (
            ffi.buffer(self._chunks), ffi.buffer(self._units), self.cct,
            self.info.key + self.info.iv,
        )  # fmt: skip


def read_header(info: BlobInfo, read_at: ReadAt) -> bytes:
    """The decrypted CCT header block, nothing of it checked."""
    return _header_block(
        info, read_at(info.meta_blob_id, info.ci_offset + info.ci_compressed_size, CCT_HEADER_SIZE)
    )


def _header_block(info: BlobInfo, data: bytes) -> bytes:
    block = _decrypt(info, data) if info.is_encrypted else data
    if len(block) != CCT_HEADER_SIZE:
        raise ImageError("CCT header: it does not decrypt")
    return block


def _read_cct(info: BlobInfo, read_at: ReadAt) -> tuple[bytes, bytes, CctHeader]:
    """Uncompressed CCT, decrypted header block, header (format.md 2.3)."""
    size = info.ci_compressed_size
    if size > MAX_UNCOMPRESSED or info.ci_uncompressed_size > MAX_UNCOMPRESSED:
        raise ImageError(f"a CCT of {info.ci_uncompressed_size} bytes")
    data = read_at(info.meta_blob_id, info.ci_offset, size + CCT_HEADER_SIZE)
    raw, block = data[:size], _header_block(info, data[size:])
    if info.is_encrypted:
        raw = _decrypt(info, raw)
    header = CctHeader.unpack(block)
    if header.magic != CCT_MAGIC or int.from_bytes(block[-4:], "little") != CCT_MAGIC:
        raise ImageError(f"CCT header at {info.ci_offset + size:#x}: wrong magic")
    said = (
        header.ci_compressor,
        header.ci_offset,
        header.ci_compressed_size,
        header.ci_uncompressed_size,
    )
    expected = (
        info.ci_compressor,
        info.ci_offset,
        info.ci_compressed_size,
        info.ci_uncompressed_size,
    )
    generated = info.features & BlobFeatures.IS_CHUNKDICT_GENERATED
    if said != expected or (header.entries != info.chunk_count and not generated):
        raise ImageError("CCT header and blob table disagree")
    raw_already = info.ci_compressor is Compressor.NONE or len(raw) == info.ci_uncompressed_size
    compressor = Compressor.NONE if raw_already else info.ci_compressor
    return decompress(compressor, raw, info.ci_uncompressed_size), block, header


def _decrypt(info: BlobInfo, data: bytes) -> bytes:
    if not 16 <= len(data) <= MAX_CHUNK_SIZE:
        raise ImageError(f"an encrypted CCT of {len(data)} bytes")
    out = bytearray(len(data))
    target = ffi.from_buffer("uint8_t[]", out)
    got = lib.rafs_xts_decrypt(info.key, info.iv, data, len(data), target, len(out))
    if got < 0:
        raise ImageError("the CCT does not decrypt")
    return bytes(out[:got])


def _read_digests(info: BlobInfo, read_at: ReadAt, blob_size: Callable[[str], int]) -> bytes:
    size = blob_size(info.meta_blob_id)
    area = read_toc(read_at, info.meta_blob_id, size, info.toc_size, info.toc_digest)
    part = parse_toc(area).get(DIGEST_NAME)
    if part is None or part.uncompressed_size != info.chunk_count * _DIGEST_SIZE:
        raise ImageError(f"blob {info.meta_blob_id} has no digests for its chunks")
    return read_part(read_at, info.meta_blob_id, part, size)
