"""The table of contents at the end of a blob, and the bootstrap that may be inside it.

A blob built with blob-toc ends with TOC entries and a tar header
"rafs.blob.toc"; one with inline metadata only ends with the bootstrap and a tar
header "image.boot" (format.md 2.2, 2.8, 2.10).
"""

from __future__ import annotations

from collections.abc import Callable

from rafs_v6._codec import ffi, lib
from rafs_v6.errors import ImageError
from rafs_v6.format.erofs import Compressor, TocEntry, TocFlags
from rafs_v6.sha256 import sha256
from rafs_v6.values import dataclass

ReadAt = Callable[[str, int, int], bytes]

TAR_HEADER = 512
TOC_NAME = "rafs.blob.toc"
BOOT_NAME = "image.boot"
DIGEST_NAME = "blob.digest"
_TAIL = 4096
_MAX_ENTRIES = 64
MAX_UNCOMPRESSED = 1 << 30  # of a bootstrap or digest array; bounds what a bomb can take

_COMPRESSORS = {
    TocFlags.RAW: Compressor.NONE,
    TocFlags.ZSTD: Compressor.ZSTD,
    TocFlags.LZ4_BLOCK: Compressor.LZ4_BLOCK,
}


@dataclass(frozen=True, slots=True)
class Part:
    """``compressed_size`` bytes at ``offset``; ``digest``: sha256 of the uncompressed content."""

    name: str
    offset: int
    compressed_size: int
    uncompressed_size: int
    compressor: Compressor
    digest: bytes


def decompress(compressor: Compressor, data: bytes, size: int) -> bytes:
    """Exactly ``size`` uncompressed bytes; ``ImageError`` when that is not what is in there."""
    if compressor is Compressor.NONE:
        if len(data) != size:
            raise ImageError(f"{len(data)} bytes where {size} are due")
        return data
    if size > MAX_UNCOMPRESSED:
        raise ImageError(f"{size} bytes of metadata")
    out = bytearray(size)
    decoder = ffi.gc(lib.rafs_decoder_new(), lib.rafs_decoder_free)
    got = lib.rafs_decompress(
        decoder, compressor, data, len(data), ffi.from_buffer("uint8_t[]", out), size
    )
    if got != size:
        raise ImageError(f"{compressor.name.lower()} data of {len(data)} bytes do not decompress")
    return bytes(out)


def is_tar_header(block: bytes) -> bool:
    return block[257:262] == b"ustar"


def tar_header(block: bytes) -> tuple[str, int]:
    """Name and size of a tar header; ("", 0) when it is none."""
    if not is_tar_header(block):
        return "", 0
    name = block[:100].split(b"\0", 1)[0].decode("ascii", "replace")
    field = block[124:136]
    if field[0] & 0x80:  # GNU base-256
        return name, int.from_bytes(field[1:], "big")
    try:
        return name, int(field.rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        return "", 0


def parse_toc(area: bytes) -> dict[str, Part]:
    """Entries by name; ``area`` includes the 512-byte tar header behind them."""
    entries = len(area) - TAR_HEADER
    if entries <= 0 or entries % TocEntry.SIZE or entries > _MAX_ENTRIES * TocEntry.SIZE:
        raise ImageError(f"TOC of {len(area)} bytes")
    parts = {}
    for at in range(0, entries, TocEntry.SIZE):
        e = TocEntry.unpack(area, at)
        name = e.name.rstrip(b"\0").decode("ascii", "replace")
        if e.flags not in _COMPRESSORS:
            raise ImageError(f"TOC entry {name!r}: flags {e.flags:#x}")
        parts[name] = Part(
            name,
            e.offset,
            e.compressed_size,
            e.uncompressed_size,
            _COMPRESSORS[TocFlags(e.flags)],
            e.digest,
        )
    return parts


def read_toc(read_at: ReadAt, blob_id: str, size: int, toc_size: int, digest: bytes) -> bytes:
    """The TOC area of a blob of ``size`` bytes; checked against ``digest`` unless that is zero."""
    if toc_size:
        if not TAR_HEADER < toc_size <= size:
            raise ImageError(f"TOC of {toc_size} bytes in a blob of {size}")
        area = read_at(blob_id, size - toc_size, toc_size)
    else:
        tail_size = min(_TAIL, size)
        tail = read_at(blob_id, size - tail_size, tail_size)
        name, length = tar_header(tail[-TAR_HEADER:])
        if name != TOC_NAME or length + TAR_HEADER > len(tail):
            raise ImageError(f"blob {blob_id} has no TOC at its end")
        area = tail[len(tail) - TAR_HEADER - length :]
    if any(digest) and sha256(area).digest() != digest:
        raise ImageError(f"the TOC of blob {blob_id} does not match its digest")
    return area


def read_part(read_at: ReadAt, blob_id: str, part: Part, blob_size: int) -> bytes:
    """Uncompressed content of a part, checked against its digest."""
    if part.offset > blob_size or part.compressed_size > blob_size - part.offset:
        raise ImageError(f"{part.name} lies outside blob {blob_id}")
    data = decompress(
        part.compressor, read_at(blob_id, part.offset, part.compressed_size), part.uncompressed_size
    )
    if sha256(data).digest() != part.digest:
        raise ImageError(f"{part.name} of blob {blob_id} does not match its digest")
    return data


def find_bootstrap(read_at: ReadAt, blob_id: str, size: int) -> bytes:
    """The bootstrap inside a blob of ``size`` bytes (format.md 2.10.2)."""
    if size < TAR_HEADER:
        raise ImageError(f"{size} bytes are neither a bootstrap nor a blob with one inside")
    name, length = tar_header(read_at(blob_id, size - TAR_HEADER, TAR_HEADER))
    if name == BOOT_NAME and length <= min(size - TAR_HEADER, MAX_UNCOMPRESSED):
        return read_at(blob_id, size - TAR_HEADER - length, length)
    if name != TOC_NAME:
        raise ImageError("neither a bootstrap nor a blob with one inside")
    parts = parse_toc(read_toc(read_at, blob_id, size, 0, b""))
    if BOOT_NAME not in parts:
        raise ImageError(f"blob {blob_id} holds no bootstrap")
    return read_part(read_at, blob_id, parts[BOOT_NAME], size)
