"""The table of contents of a blob, entry by entry, and the tar headers behind the parts."""

from __future__ import annotations

import hashlib

from rafs_v6.errors import ImageError, shown
from rafs_v6.faults import Checks
from rafs_v6.format.blob_table import BlobInfo
from rafs_v6.format.erofs import CCT_HEADER_SIZE, TocEntry
from rafs_v6.format.toc import (
    TAR_HEADER,
    TOC_NAME,
    Part,
    ReadAt,
    is_tar_header,
    parse_toc,
    read_part,
)

_PIECE = 8 << 20


def check_tar_header(block: bytes, name: bytes, size: int, place: str, check: Checks) -> bool:
    """One of the headers that follow the parts (format.md 2.2)."""
    if not check(
        is_tar_header(block), "tar-header.magic", place, f"no tar header for '{shown(name)}' there"
    ):
        return False
    total = sum(block) - sum(block[148:156]) + 8 * 0x20
    found = block[:100].split(b"\0", 1)[0]
    good = check(
        _octal(block[148:156]) == total, "tar-header.checksum", place,
        f"the checksum of the tar header for '{shown(name)}' is wrong",
    )  # fmt: skip
    good &= check(
        found == name, "tar-header.name", place,
        f"a tar header for '{shown(found)}', not for '{shown(name)}'",
    )  # fmt: skip
    length = int.from_bytes(block[125:136], "big") if block[124] & 0x80 else _octal(block[124:136])
    good &= check(
        length == size, "tar-header.size", place,
        f"the tar header for '{shown(name)}' says {length} bytes, there are {size}",
    )  # fmt: skip
    return good


def _octal(field: bytes) -> int:
    try:
        return int(field.rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        return -1


def check_toc(info: BlobInfo, read_at: ReadAt, size: int, start: int, check: Checks) -> None:
    """``size``: of the blob; ``start``: where the last part before bootstrap and TOC ends."""
    blob_id = info.meta_blob_id
    where = f"blob {blob_id}"
    tail = read_at(blob_id, size - TAR_HEADER, TAR_HEADER)
    at = f"{where}, byte {size - TAR_HEADER:#x}"
    length = _octal(tail[124:136])
    if not is_tar_header(tail) or tail[:100].rstrip(b"\0") != TOC_NAME.encode():
        check.fail("toc.magic", at, "the blob does not end with the header of its TOC: truncated?")
        return
    if not check(
        0 < length <= size - TAR_HEADER - start and length % TocEntry.SIZE == 0, "toc.size", at,
        f"a TOC of {length} bytes in a blob of {size}",
    ):  # fmt: skip
        return
    check_tar_header(tail, TOC_NAME.encode(), length, at, check)
    area = read_at(blob_id, size - TAR_HEADER - length, length + TAR_HEADER)
    at = f"{where}, byte {size - len(area):#x}"
    check(
        not info.toc_size or info.toc_size == len(area), "toc.size", at,
        f"a TOC of {len(area)} bytes, the bootstrap says {info.toc_size}",
    )  # fmt: skip
    digest = hashlib.sha256(area).digest()
    check(
        not any(info.toc_digest) or digest == info.toc_digest, "toc.digest", at,
        f"the TOC's digest is {digest.hex()}, the bootstrap says {info.toc_digest.hex()}",
    )  # fmt: skip
    try:
        parts = parse_toc(area)
    except ImageError as error:
        check.fail("toc.entry", at, str(error))
        return
    _check_places(info, parts, start, size - len(area), at, check)
    for part in parts.values():
        _check_content(info, part, read_at, size, at, check)


def _check_places(
    info: BlobInfo, parts: dict[str, Part], start: int, toc_at: int, at: str, check: Checks
) -> None:
    """Every entry where the bootstrap has it; what it does not know must fill the rest."""
    ci = info.ci_offset, info.ci_compressed_size
    digests = 32 * info.chunk_count
    known = {
        "blob.meta": ci,
        "blob.meta.header": (sum(ci), CCT_HEADER_SIZE),
        "blob.digest": (start - TAR_HEADER - digests, digests),
    }
    if not info.is_separate:
        known["image.blob"] = (0, info.ci_offset - TAR_HEADER)
    if start < toc_at:
        known["image.boot"] = (start, toc_at - TAR_HEADER - start)
    for name, (offset, length) in known.items():
        part = parts.get(name)
        if part is None:
            check.fail("toc.entry.missing", at, f"the TOC has no {name}")
            continue
        check(
            part.offset == offset, "toc.entry.offset", at,
            f"TOC: {name} is at {part.offset:#x}, it should be at {offset:#x}",
        )  # fmt: skip
        check(
            part.compressed_size == length, "toc.entry.size", at,
            f"TOC: {name} has {part.compressed_size} bytes, it should have {length}",
        )  # fmt: skip
    for name in parts.keys() - known.keys():
        check.fail("toc.entry.name", at, f"TOC: an entry {name!r}")


def _check_content(
    info: BlobInfo, part: Part, read_at: ReadAt, size: int, at: str, check: Checks
) -> None:
    blob_id = info.meta_blob_id
    if info.is_encrypted and part.name.startswith("blob.meta"):
        return  # their digests are over what is decrypted, which the chunk map's own checks see
    try:
        if part.name != "image.blob":
            read_part(read_at, blob_id, part, size)
            return
    except ImageError as error:
        check.fail("toc.entry.digest", at, str(error))
        return
    if part.compressed_size + TAR_HEADER > size:
        return  # its size was found wrong above
    # This one is over the compressed data and their tar header (format.md 2.8).
    whole, end = hashlib.sha256(), part.compressed_size + TAR_HEADER
    for start in range(0, end, _PIECE):
        whole.update(read_at(blob_id, start, min(_PIECE, end - start)))
    check(
        whole.digest() == part.digest, "toc.entry.digest", at,
        "TOC: image.blob does not match its digest",
    )  # fmt: skip
