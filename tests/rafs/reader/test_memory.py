"""Memory goes by what an image costs to store, not by the sizes that it states."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from built import build_image

import rafs_v6
from rafs_v6.format.erofs import BlobFeatures

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Iterator[rafs_v6.Image]:
    (tmp_path / "blobs").mkdir()
    place = ["-B", tmp_path / "boot", "-D", tmp_path / "blobs"]
    build_image(tmp_path / "tree", {"f": bytes(5000)}, "-t", "dir-rafs", *place)
    with rafs_v6.open(tmp_path / "boot", blobs=tmp_path / "blobs") as image:
        tracemalloc.start()
        yield image
        tracemalloc.stop()


def test_a_tar_of_a_stated_tebibyte(image: rafs_v6.Image) -> None:
    info = replace(image.blobs[0], features=BlobFeatures.TARFS, uncompressed_size=1 << 40)
    chunks = rafs_v6.ChunkMap.load(info, image.source.read_at, image.bootstrap, blob_size=len)
    assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    assert chunks.nunits == 1 << 16
    assert chunks.unit_range(chunks.nunits - 1)[1] == 1 << 40
    small = replace(info, uncompressed_size=5 * MIB)
    chunks = rafs_v6.ChunkMap.load(small, image.source.read_at, image.bootstrap, blob_size=len)
    assert chunks.unit(0).ulen == MIB, "others are fetched a MiB at a time"


def test_more_chunks_than_the_data_have_blocks(image: rafs_v6.Image) -> None:
    many = replace(image.blobs[0], chunk_count=1 << 20, ci_uncompressed_size=16 << 20)
    asked: list[int] = []
    with pytest.raises(rafs_v6.ImageError, match="1048576 chunks in 8192 bytes"):
        rafs_v6.ChunkMap.load(
            many, lambda _, off, n: asked.append(n) or b"", image.bootstrap, blob_size=len
        )
    assert not asked


def test_a_table_that_is_not_there_takes_no_memory(image: rafs_v6.Image) -> None:
    many = replace(
        image.blobs[0], chunk_count=1 << 20, ci_uncompressed_size=16 << 20,
        uncompressed_size=1 << 33,
    )  # fmt: skip
    with pytest.raises(rafs_v6.ImageError):
        rafs_v6.ChunkMap.load(many, image.source.read_at, image.bootstrap, blob_size=len)
    assert tracemalloc.get_traced_memory()[1] < 20 * MIB
