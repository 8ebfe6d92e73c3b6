"""One blob's metadata against the bootstrap: id, size, CCT, TOC, digests, tar headers.

Positions come from the blob table, not from the blob, so that one damaged part
does not hide the next.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Sequence

from rafs_v6.errors import ImageError, shown
from rafs_v6.faults import Checks
from rafs_v6.format.blob_table import BlobInfo
from rafs_v6.format.erofs import (
    CCT_HEADER_SIZE,
    CCT_MAGIC,
    BlobFeatures,
    CctHeader,
    ChunkRecord,
)
from rafs_v6.format.toc import TAR_HEADER
from rafs_v6.reader.blobs import Blobs
from rafs_v6.reader.bootstrap import Bootstrap
from rafs_v6.reader.chunkmap import ChunkMap, read_header
from rafs_v6.tools.check.toc import check_tar_header, check_toc

_PIECE = 8 << 20
_DIGEST = 32
_COUNTED = BlobFeatures.IS_CHUNKDICT_GENERATED


class BlobCheck:
    """``records``: where the bootstrap has the blob's chunk records."""

    def __init__(
        self, bootstrap: Bootstrap, info: BlobInfo, blobs: Blobs, check: Checks,
        records: Sequence[int],
    ) -> None:  # fmt: skip
        self._records = records
        self._bootstrap, self._info, self._blobs, self._check = bootstrap, info, blobs, check
        self._meta = f"blob {info.meta_blob_id}"
        self._digests = b""

    def run(self) -> ChunkMap | None:
        """The blob's chunk map, when its data can be looked at."""
        info = self._info
        size = self._size_of(info.blob_id)
        if size is None:
            return None
        right = self._check_size(info, size)
        if info.is_tarfs:
            self._check_ids(size, size, (0, 0))
            return self._load() if right else None
        if info.meta_blob_id != info.blob_id:
            meta_size = self._size_of(info.meta_blob_id)
            if meta_size is None:
                return None
        else:
            meta_size = size
        ci_end = info.ci_offset + info.ci_compressed_size + CCT_HEADER_SIZE
        if not self._check(
            ci_end <= meta_size, "blob.truncated", self._meta,
            f"{meta_size} bytes; its chunk map ends at {ci_end}",
        ):  # fmt: skip
            return None
        header_good = self._check_header()
        self._check_ids(size, meta_size, self._check_parts(meta_size))
        chunks = self._load() if header_good else None
        if chunks is not None:
            self._check_records(chunks)
        return chunks

    # -- sizes and ids ---------------------------------------------------------------------------

    def _size_of(self, blob_id: str) -> int | None:
        try:
            return self._blobs.size(blob_id)
        except FileNotFoundError:
            self._check.fail("blob.missing", f"blob {blob_id}", "it is not there")
        except Exception as error:  # whatever a backend raises
            self._check.fail("blob.unread", f"blob {blob_id}", str(error))
        return None

    def _check_size(self, info: BlobInfo, size: int) -> bool:
        exact = (
            info.is_separate or info.is_tarfs or not info.features & (BlobFeatures.HAS_TAR_HEADER)
        )
        place = f"blob {info.blob_id}"
        right = self._check(
            size >= info.compressed_size, "blob.truncated", place,
            f"{size} bytes, the bootstrap says {info.compressed_size}",
        )  # fmt: skip
        self._check(
            not exact or size <= info.compressed_size, "blob.trailing", place,
            f"{size} bytes, the bootstrap says {info.compressed_size}",
        )  # fmt: skip
        return right

    def _check_ids(self, size: int, meta_size: int, skip: tuple[int, int]) -> None:
        ids = {self._info.blob_id: (size, (0, 0)), self._info.meta_blob_id: (meta_size, skip)}
        for blob_id, (length, left_out) in ids.items():
            try:
                self._check_id(blob_id, length, left_out)
            except Exception as error:  # whatever a backend raises
                self._check.fail("blob.unread", f"blob {blob_id}", str(error))

    def _check_id(self, blob_id: str, size: int, skip: tuple[int, int]) -> None:
        """An id is the sha256 of the object, or of it without ``skip`` (format.md 2.9).

        One that is no sha256 was given by hand and says nothing of the content.
        """
        if len(blob_id) != 2 * _DIGEST or not set(blob_id) <= set(string.hexdigits):
            return
        start, end = skip
        whole = hashlib.sha256()
        without = None
        at = 0
        while at < size:
            if at == start and end > start:
                without = whole.copy()
            stop = min(at + _PIECE, size, *(edge for edge in skip if edge > at))
            piece = self._blobs.read_at(blob_id, at, stop - at)
            whole.update(piece)
            if without is not None and at >= end:
                without.update(piece)
            at = stop
        found = {h.hexdigest() for h in (whole, without) if h is not None}
        self._check(
            blob_id in found, "blob.digest", f"blob {blob_id}",
            f"its content has the digest {whole.hexdigest()}: damaged, or another blob",
        )  # fmt: skip

    # -- CCT ---------------------------------------------------------------------------------------

    def _check_header(self) -> bool:
        """Every field of the CCT header that a reader compares (format.md 2.3)."""
        info, at = self._info, self._info.ci_offset + self._info.ci_compressed_size
        place = f"{self._meta}, byte {at:#x}"
        try:
            block = read_header(info, self._blobs.read_at)
        except ImageError as error:
            self._check.fail("blob-meta.header", place, str(error))
            return False
        except Exception as error:  # whatever a backend raises
            self._check.fail("blob.unread", self._meta, str(error))
            return False
        header = CctHeader.unpack(block)
        rules = [
            ("magic", header.magic, CCT_MAGIC),
            ("magic2", int.from_bytes(block[-4:], "little"), CCT_MAGIC),
            ("ci_compressor", header.ci_compressor, info.ci_compressor),
            ("ci_offset", header.ci_offset, info.ci_offset),
            ("ci_compressed_size", header.ci_compressed_size, info.ci_compressed_size),
            ("ci_uncompressed_size", header.ci_uncompressed_size, info.ci_uncompressed_size),
        ]
        if not info.features & _COUNTED:
            rules.append(("entries", header.entries, info.chunk_count))
        good = True
        for name, found, wanted in rules:
            good &= self._check(
                found == wanted, f"blob-meta.header.{name}", place,
                f"{name} of the chunk map's header is {found:#x}, it should be {wanted:#x}",
            )  # fmt: skip
        self._check(
            not any(block[CctHeader.SIZE : -4]), "blob-meta.header.reserved", place,
            "reserved bytes of the chunk map's header are not 0",
        )  # fmt: skip
        return good

    def _load(self) -> ChunkMap | None:
        info = self._info
        try:
            return ChunkMap.load(
                info, self._blobs.read_at, self._bootstrap, blob_size=self._blobs.size
            )
        except ImageError as error:
            place = f"{self._meta}, byte {info.ci_offset:#x}"
            self._check.fail("blob-meta.entries", place, str(error))
        except Exception as error:  # whatever a backend raises
            self._check.fail("blob.unread", self._meta, str(error))
        return None

    def _check_records(self, chunks: ChunkMap) -> None:
        """The chunk table of the bootstrap against the chunk map of the blob."""
        if self._info.features & _COUNTED:
            return
        for at in self._records:
            record = ChunkRecord.unpack(self._bootstrap.data, at)
            place = f"bootstrap, byte {at:#x}"
            if not self._check(
                record.index < chunks.nchunks, "chunk-table.index", place,
                f"chunk table: chunk {record.index} of {chunks.nchunks}",
            ):  # fmt: skip
                continue
            self._check_record(chunks, record, place)

    def _check_record(self, chunks: ChunkMap, record: ChunkRecord, place: str) -> None:
        chunk, number = chunks.blob.chunks[record.index], record.index
        self._check(
            (chunk.uoff, chunk.usize) == (record.uncompressed_offset, record.uncompressed_size),
            "blob-meta.entry", self._meta,
            f"chunk {number} has {chunk.usize} bytes at {chunk.uoff:#x}, the bootstrap says "
            f"{record.uncompressed_size} at {record.uncompressed_offset:#x}",
        )  # fmt: skip
        unit = chunks.unit(chunk.unit)
        whole = self._info.features & (BlobFeatures.BATCH | BlobFeatures.ZRAN)
        self._check(
            whole or (unit.coff, unit.clen) == (record.compressed_offset, record.compressed_size),
            "blob-meta.entry", self._meta,
            f"chunk {number} has {unit.clen} compressed bytes at {unit.coff:#x}, the bootstrap "
            f"says {record.compressed_size} at {record.compressed_offset:#x}",
        )  # fmt: skip
        if self._digests:
            found = self._digests[number * _DIGEST : (number + 1) * _DIGEST]
            self._check(
                found == record.digest, "chunk-digests.entry", self._meta,
                f"blob.digest says chunk {number} is {found.hex()}, the bootstrap "
                f"{record.digest.hex()}",
            )  # fmt: skip

    # -- parts -------------------------------------------------------------------------------------

    def _check_parts(self, size: int) -> tuple[int, int]:
        """Tar headers, TOC and digest array; where the array is (what the id leaves out)."""
        try:
            return self._find_parts(size)
        except Exception as error:  # whatever a backend raises
            self._check.fail("blob.unread", self._meta, str(error))
            return 0, 0

    def _find_parts(self, size: int) -> tuple[int, int]:
        info, features = self._info, self._info.features
        ci_end = info.ci_offset + info.ci_compressed_size + CCT_HEADER_SIZE
        if not features & BlobFeatures.HAS_TAR_HEADER:
            return 0, 0
        headers = [(b"blob.meta", ci_end, ci_end - info.ci_offset)]
        if not info.is_separate:
            data_size = info.ci_offset - TAR_HEADER
            headers.insert(0, (b"image.blob", data_size, data_size))
        end, skip = ci_end + TAR_HEADER, (0, 0)
        if features & BlobFeatures.INLINED_CHUNK_DIGEST:
            skip = end, end + info.chunk_count * _DIGEST
            headers.append((b"blob.digest", skip[1], skip[1] - skip[0]))
            end = skip[1] + TAR_HEADER
        for name, at, length in headers:
            if at < 0 or at + TAR_HEADER > size:
                text = f"{size} bytes, without the tar header for '{shown(name)}'"
                self._check.fail("blob.truncated", self._meta, text)
                return skip
            place = f"{self._meta}, byte {at:#x}"
            check_tar_header(self._read(at, TAR_HEADER), name, length, place, self._check)
        if skip[1]:
            self._digests = self._read(skip[0], skip[1] - skip[0])
        if features & BlobFeatures.HAS_TOC:
            check_toc(info, self._blobs.read_at, size, end, self._check)
        return skip

    def _read(self, at: int, length: int) -> bytes:
        return self._blobs.read_at(self._info.meta_blob_id, at, length)
