"""What a build keeps of each chunk: beyond some megabytes in a file, and sorted part by part."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest

from rafs_v6.format.erofs import CHUNK_RECORD_SIZE, ChunkFlags, ChunkRecord
from rafs_v6.writer import chunk_table as table_module
from rafs_v6.writer import spill as spill_module
from rafs_v6.writer.chunk_records import ChunkRecords
from rafs_v6.writer.chunk_table import chunk_table
from rafs_v6.writer.errors import BuildError
from rafs_v6.writer.spill import Spill


@pytest.mark.parametrize("most", [100, 1000, 1 << 20])
def test_bytes_come_back_in_order(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(spill_module, "IN_MEMORY", most)
    monkeypatch.setattr(spill_module, "_PIECE", 256)
    spill, dice = Spill(10), random.Random(most)
    data = b"".join(dice.randbytes(10 * dice.randrange(20)) for _ in range(100))
    at = 0
    while at < len(data):
        step = 10 * dice.randrange(1, 30)
        spill.append(memoryview(data)[at : at + step])
        at += step
        assert len(spill._tail) < most, "few are in memory"
    assert len(spill) == len(data)
    pieces = list(spill.pieces())
    assert all(len(piece) % 10 == 0 for piece in pieces)
    assert b"".join(pieces) == bytes(spill.whole()) == data


def test_a_full_disk_is_an_error_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill_module, "IN_MEMORY", 100)
    full = os.open("/dev/full", os.O_WRONLY)
    spill = Spill()
    spill._fd = full
    with pytest.raises(BuildError, match=r"No space left.*TMPDIR"):
        spill.append(bytes(200))
    os.close(full)


def _record(digest: bytes, index: int) -> ChunkRecord:
    return ChunkRecord(digest, 0, ChunkFlags(0), 5, 5, index, index << 12, 0, index, 0)


@pytest.mark.parametrize("part", [CHUNK_RECORD_SIZE, 4000, 1 << 20])
def test_a_table_is_the_same_in_one_part_and_in_many(
    monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    monkeypatch.setattr(table_module, "PART", part)
    monkeypatch.setattr(spill_module, "IN_MEMORY", 5000)
    dice = random.Random(1)
    # of few kinds, so that digests are there twice, in one blob and in two
    digests = [hashlib.sha256(b"%d" % n).digest() for n in range(150)] + [bytes(32), b"\xff" * 32]
    blobs, expected = [], {}
    for blob in range(3):
        records = ChunkRecords()
        for index in range(200):
            record = _record(dice.choice(digests), index)
            records.append(record)
            expected[record.digest, blob] = index
        blobs.append(records)
    table = chunk_table(blobs)
    data = bytes(table.whole())
    found = [
        ChunkRecord.unpack(data[at : at + CHUNK_RECORD_SIZE])
        for at in range(0, len(data), CHUNK_RECORD_SIZE)
    ]
    assert [(r.digest, r.blob_index, r.index) for r in found] == [
        (*key, expected[key]) for key in sorted(expected)
    ]
    assert [r.blob_index for records in blobs for r in records] == [0] * 600, "stay as they are"


def test_no_records_are_no_table() -> None:
    assert len(chunk_table([])) == len(chunk_table([ChunkRecords()])) == 0


def test_small_builds_open_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", os.fspath(tmp_path / "none"))
    spill = Spill()
    spill.append(bytes(spill_module.IN_MEMORY - 1))
    assert spill._fd < 0
