"""A bootstrap that is opened again and again by those who may not keep it open."""

from __future__ import annotations

from pathlib import Path

import pytest
from built import build_image

import rafs_v6


def test_a_closed_bootstrap_can_be_mapped_again_and_reads_the_same(tmp_path: Path) -> None:
    boot = tmp_path / "boot"
    contents = {f"dir/file{i}": bytes([i]) * 5000 for i in range(20)}
    build_image(tmp_path / "tree", contents, "-t", "dir-rafs", "-B", boot, "-D", tmp_path)
    first = rafs_v6.Bootstrap.from_file(boot)
    walked = [(path, inode) for path, inode in first.walk()]
    records = list(first.chunk_records())
    first.close()
    with pytest.raises(ValueError, match="released"):
        first.lookup("/dir")
    for _ in range(3):
        again = first.mapped_again(boot)
        assert [(path, inode) for path, inode in again.walk()] == walked
        assert list(again.chunk_records()) == records
        assert again.blobs == first.blobs
        again.close()
    assert first.data is not again.data
