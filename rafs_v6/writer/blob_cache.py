"""The cache files of nydusd instead of a blob: ``--blob-cache-dir`` (format.md 5).

ID.blob.data has the uncompressed chunks where the flat blob has them, ID.blob.meta the chunk map
and its header.  A node that gets them needs to fetch nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from rafs_v6.format.erofs import CCT_HEADER_SIZE, EROFS_BLOCK, BlobRecord, round_up
from rafs_v6.writer.blob_chunks import BlobChunks
from rafs_v6.writer.blob_file import BlobFile, write_atomically
from rafs_v6.writer.errors import BuildError


def write_cache_files(
    directory: Path, blob: int, blob_id: str, record: BlobRecord, chunks: BlobChunks
) -> None:
    """``blob``: a descriptor of the finished blob, whose chunks are stored uncompressed."""
    header_at = record.ci_offset + record.ci_compressed_size
    header = os.pread(blob, CCT_HEADER_SIZE, header_at)
    cct = bytes(chunks.whole_cct())
    padded = cct.ljust(round_up(len(cct), EROFS_BLOCK), b"\0")
    target = directory / f"{blob_id}.blob.data"
    out = BlobFile(target)
    try:
        for offset, flat, size in _places(chunks):
            _copy(blob, offset, out.raw.fileno(), flat, size)
        os.ftruncate(out.raw.fileno(), chunks.flat_size)
        out.publish(target)
    finally:
        out.discard()
    write_atomically(directory / f"{blob_id}.blob.meta", (padded, header))


def _places(chunks: BlobChunks) -> Iterator[tuple[int, int, int]]:
    for record in chunks.records:
        if record.compressed_size != record.uncompressed_size:
            raise BuildError("cache files are made of uncompressed chunks")
        yield record.compressed_offset, record.uncompressed_offset, record.uncompressed_size


def _copy(source: int, at: int, target: int, to: int, size: int) -> None:
    while size:
        done = os.copy_file_range(source, target, size, at, to)
        if not done:
            raise BuildError("the blob ended while its cache files were written")
        at, to, size = at + done, to + done, size - done
