"""The two presence maps, against the bytes that nydusd writes (format.md 5)."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydus_fscache.cache.presence import PAGE, ChunkMapFile, PageMap, shared_map
from nydus_fscache.errors import CacheDirError
from nydus_fscache.files import open_state_file


@given(
    pages=st.integers(1, 200),
    ranges=st.lists(st.tuples(st.integers(0, 199), st.integers(1, 60)), max_size=8),
)
def test_page_map_is_the_set_of_its_pages(pages: int, ranges: list[tuple[int, int]]) -> None:
    page_map = PageMap(pages * PAGE)
    expected: set[int] = set()
    for first, count in ranges:
        end = min(pages, first + count)
        if first < end:
            page_map.set(first, end)
            expected |= set(range(first, end))
    assert page_map.bytes_present() == len(expected) * PAGE
    assert {p for p in range(pages) if page_map.all_set(p, p + 1)} == expected
    for first in range(0, pages, 7):
        end = min(pages, first + 13)
        assert page_map.all_set(first, end) == expected.issuperset(range(first, end))


def test_page_map_is_what_the_next_process_sees() -> None:
    fd = shared_map(100 * PAGE)
    try:
        first = PageMap(100 * PAGE, fd)
        first.set(3, 77)
        first.close()
        assert PageMap(100 * PAGE, fd).bytes_present() == 74 * PAGE
    finally:
        os.close(fd)


def test_what_chunks_depend_on_is_settled_before_the_first_is_recorded(tmp_path: Path) -> None:
    seen: list[bytes] = []
    chunk_map = ChunkMapFile(tmp_path / "m", 8, lambda: seen.append((tmp_path / "m").read_bytes()))
    chunk_map.record([(0, 1)])
    chunk_map.record([(1, 1)])
    assert [content[4096:] for content in seen] == [b"\0"]
    ChunkMapFile(tmp_path / "m", 8, lambda: seen.append(b"")).record([(2, 1)])
    assert len(seen) == 1


def test_chunk_map_has_the_bytes_of_nydusd(tmp_path: Path) -> None:
    chunk_map = ChunkMapFile(tmp_path / "m", 36)
    chunk_map.record([(0, 1), (8, 3)])
    assert chunk_map.has(8, 3)
    assert not chunk_map.has(0, 2)
    data = (tmp_path / "m").read_bytes()
    assert data[:16] == struct.pack("<4I", 0x424D4150, 1, 0x434D4150, 0)
    assert data[4096:] == bytes([0x80, 0xE0, 0, 0, 0])
    chunk_map.record([(i, 1) for i in range(36)])
    assert (tmp_path / "m").read_bytes()[4096:] == b"\xff\xff\xff\xff\xf0"


def test_chunk_map_of_all_ready_needs_no_bits(tmp_path: Path) -> None:
    header = struct.pack("<4I", 0x424D4150, 1, 0x434D4150, 0x4D4D4150)
    (tmp_path / "m").write_bytes(header.ljust(4096, b"\0") + bytes(2))
    assert ChunkMapFile(tmp_path / "m", 16).has(0, 16)


@pytest.mark.parametrize("damage", [b"", b"x" * 5000, bytes(4096 + 2)])
def test_damaged_chunk_map_counts_as_empty(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "m").write_bytes(damage)
    assert not any(ChunkMapFile(tmp_path / "m", 16).has(i, 1) for i in range(16))


def test_planted_symlink_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "m").symlink_to(victim)
    with pytest.raises(CacheDirError):
        open_state_file(tmp_path / "m")
    with pytest.raises(CacheDirError):
        ChunkMapFile(tmp_path / "m", 16)
    assert victim.read_text() == "precious"
