"""Every chunk of a blob: decoded, and compared with its digest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rafs_v6._codec import ffi, lib
from rafs_v6.faults import Checks
from rafs_v6.reader.blobs import Blobs
from rafs_v6.reader.chunkmap import ChunkMap
from rafs_v6.reader.stream import Batch, UnitReader, grouped
from rafs_v6.values import dataclass


@dataclass(slots=True)
class CheckedData:
    """Uncompressed bytes.  ``unverified``: decoded, but the image has no digest for them."""

    chunks: int = 0
    decoded: int = 0
    unverified: int = 0


def check_data(
    maps: Sequence[ChunkMap], blobs: Blobs, check: Checks, *, threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> CheckedData:  # fmt: skip
    """Decode all of ``maps`` in batches over ``threads`` threads (0: as many as processors)."""
    out = CheckedData()
    total = sum(chunks.info.uncompressed_size for chunks in maps)
    reader = UnitReader(blobs.read_at, threads)
    units = ((chunks, unit) for chunks in maps for unit in range(chunks.nunits))
    for batch in reader.batches(grouped(units)):
        for i, error in batch.unread.items():
            _fail(batch, i, "chunk.unread", str(error), check)
        for i in batch.undecoded:
            compressor = batch.units[i][0].info.compressor.name.lower()
            _fail(batch, i, "chunk.undecodable", f"does not decode ({compressor})", check)
        for i in batch.bad:
            _check_chunks(batch, i, check)
        for chunks, number in batch.units:
            unit = chunks.unit(number)
            out.chunks += unit.count
            out.decoded += unit.ulen
            first = chunks.blob.chunks[unit.first]
            if not first.flags & (lib.RAFS_CHUNK_HAS_DIGEST | lib.RAFS_CHUNK_HAS_CRC):
                out.unverified += unit.ulen
        if progress is not None:
            progress(min(out.decoded, total), total)
    return out


def _fail(batch: Batch, i: int, name: str, text: str, check: Checks) -> None:
    chunks, number = batch.units[i]
    unit = chunks.unit(number)
    last = unit.first + unit.count - 1
    which = f"chunk {unit.first}" if unit.count == 1 else f"chunks {unit.first} to {last}"
    check.fail(
        name, f"blob {chunks.info.blob_id}, byte {unit.coff:#x}",
        f"{which}, {unit.clen} compressed bytes: {text}",
    )  # fmt: skip


def _check_chunks(batch: Batch, i: int, check: Checks) -> None:
    chunks, number = batch.units[i]
    unit, whole = chunks.unit(number), batch.uncompressed(i)
    for k in range(unit.first, unit.first + unit.count):
        chunk = chunks.blob.chunks[k]
        data = ffi.from_buffer("uint8_t[]", whole[chunk.unit_off : chunk.unit_off + chunk.usize])
        if lib.rafs_chunk_verify(chunks.blob, k, data):
            check.fail(
                "chunk.digest", f"blob {chunks.info.blob_id}, byte {unit.coff:#x}",
                f"chunk {k} of {chunk.usize} bytes does not match its digest "
                f"{bytes(chunk.digest).hex()} (from {chunks.digest_source})",
            )  # fmt: skip
