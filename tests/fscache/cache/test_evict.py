"""Our cached blobs as a source of eviction: looked at once, whatever their number."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nydus_fscache.cache.evict import Cached, OwnFiles


def _evict(name: str) -> bool:
    return True


def test_each_file_is_looked_at_by_the_listing_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b.c", "used"):
        (tmp_path / f"{name}.blob.data").write_bytes(os.urandom(8192))
        for suffix in ("blob.data.chunk_map", "blob.meta", "identity"):
            (tmp_path / f"{name}.{suffix}").write_bytes(b"x")
        os.utime(tmp_path / f"{name}.identity", (10, 10))
    (tmp_path / "lost.identity").write_bytes(b"x")  # without data it is no blob
    (tmp_path / "plain.blob.data").write_bytes(b"")
    (tmp_path / "chunks.index").write_bytes(b"x" * 5000)
    (tmp_path / "other").write_bytes(b"x")

    def never(self: Path) -> os.stat_result:
        raise AssertionError(self)

    monkeypatch.setattr(Path, "lstat", never)
    found = {b.name: b for b in OwnFiles(tmp_path, lambda: ["used"], _evict).blobs()}
    assert set(found) == {"a", "b.c", "used", "plain", "chunks.index"}
    assert found["b.c"].bytes >= 8192 + 3 * 512
    assert (found["a"].last_used, found["plain"].last_used) == (10, 0)
    assert {n for n, b in found.items() if b.in_use} == {"used", "chunks.index"}
    assert found["plain"] == Cached("plain", 0, 0.0, in_use=False)
