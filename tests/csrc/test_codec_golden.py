"""Every unit of every golden image is decoded, and every chunk is what its digest says."""

from __future__ import annotations

from pathlib import Path

import pytest
from codec_kit import TARFS, ZRAN, Decoder, blob_table, chunk_table, load_map

from rafs_v6._codec import ffi, lib

IMAGES = [
    "chunk-dict",
    "estargz-rafs",
    "estargz-ref",
    "layers-zran",
    "layers-zstd",
    "one-batch",
    "one-encrypted",
    "one-lz4",
    "one-none-64k",
    "one-prefetch",
]


@pytest.mark.parametrize("name", IMAGES)
def test_all_chunks_of_image(golden: Path, name: str) -> None:
    image = golden / "images" / name
    boot = (image / "image.boot").read_bytes()
    table = chunk_table(boot)
    decoder = Decoder()
    checked = 0
    for rec in blob_table(boot):
        assert not rec.features & TARFS
        chunk_map = load_map(rec, image / "blobs", decoder)
        blob = chunk_map.blob
        # All chunks of the blob are used by the image, except what merge and dedup dropped.
        known = lib.rafs_chunk_table_apply(table, len(table), rec.index, blob)
        assert 0 < known <= rec.nchunks
        assert blob.nunits == rec.nchunks or name in {"one-batch", "layers-zran", "estargz-ref"}
        with (image / "blobs" / rec.blob_id).open("rb") as stored:
            for i in range(blob.nunits):
                unit = blob.units[i]
                stored.seek(unit.coff)
                plain = chunk_map.decode_unit(decoder, i, stored.read(unit.clen))
                assert isinstance(plain, bytes), (rec.blob_id, i, plain)
                buf = ffi.from_buffer("uint8_t[]", plain)
                for c in range(unit.first, unit.first + unit.count):
                    chunk = blob.chunks[c]
                    assert chunk.unit == i
                    assert lib.rafs_chunk_verify(blob, c, buf + chunk.unit_off) == 0, (i, c)
                    checked += bool(chunk.flags & lib.RAFS_CHUNK_HAS_DIGEST)
    assert checked >= 15


def test_a_flipped_byte_does_not_pass(golden: Path) -> None:
    image = golden / "images" / "layers-zran"
    boot = (image / "image.boot").read_bytes()
    rec = next(blob_table(boot))
    assert rec.features & ZRAN
    decoder = Decoder()
    chunk_map = load_map(rec, image / "blobs", decoder)
    table = chunk_table(boot)
    lib.rafs_chunk_table_apply(table, len(table), rec.index, chunk_map.blob)
    unit = chunk_map.blob.units[0]
    stored = bytearray((image / "blobs" / rec.blob_id).read_bytes()[unit.coff :][: unit.clen])
    stored[len(stored) // 2] ^= 0x10
    plain = chunk_map.decode_unit(decoder, 0, bytes(stored))
    if isinstance(plain, bytes):
        buf = ffi.from_buffer("uint8_t[]", plain)
        verdicts = {
            lib.rafs_chunk_verify(chunk_map.blob, c, buf + chunk_map.blob.chunks[c].unit_off)
            for c in range(unit.first, unit.first + unit.count)
        }
        assert min(verdicts) < 0
