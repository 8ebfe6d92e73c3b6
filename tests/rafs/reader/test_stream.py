"""Streams and batches of units: right whatever the timing of the reads is."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import rafs_v6
from rafs_v6.cli import main
from rafs_v6.reader import stream as stream_module
from rafs_v6.reader.stream import UnitReader, grouped, stream

CHUNK = 0x1000
FILES = {f"f{i:02}": random.Random(i).randbytes(8 * CHUNK + i) for i in range(12)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("built")
    for name, data in FILES.items():
        (base / "tree").mkdir(exist_ok=True)
        (base / "tree" / name).write_bytes(data)
    (base / "blobs").mkdir()
    options = ["-B", str(base / "boot"), "-D", str(base / "blobs"), "--compressor", "none"]
    create = ["create", "-t", "dir-rafs", "--chunk-size", hex(CHUNK), *options]
    assert main([*create, str(base / "tree")]) == 0
    return base


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "ARENA", 8 * CHUNK)


class Slow:
    """A backend of which one read is late: it ends when two others have begun, or after a while."""

    def __init__(self, blobs: Path, late: int) -> None:
        self._data = {p.name: p.read_bytes() for p in blobs.iterdir()}
        self._late, self._begun, self._lock = late, 0, threading.Lock()

    def __call__(self, blob_id: str, offset: int, length: int) -> bytes:
        with self._lock:
            self._begun += 1
            number = self._begun
        if number == self._late:
            deadline = time.monotonic() + 0.2
            while self._begun < number + 2 and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.02)
        return self._data[blob_id][offset : offset + length]


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("late", range(1, 10))
def test_a_late_read_does_not_mix_batches(built: Path, late: int) -> None:
    image = rafs_v6.open(built / "boot", blobs=built / "blobs")
    image.chunk_map(0)
    files = [(path[1:].decode(), inode) for path, inode in image.walk() if inode.is_reg]
    refs = (ref for _, inode in files for ref in image.bootstrap.chunks(inode))
    data = stream(image, Slow(built / "blobs", late), refs)
    for name, inode in files:
        got = b""
        while len(got) < inode.size:
            got += next(data)
            time.sleep(0.0005)  # a writer: what was verified must still be there
        assert got == FILES[name]


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("late", range(1, 6))
def test_a_batch_is_good_until_the_next_is_asked_for(built: Path, late: int) -> None:
    image = rafs_v6.open(built / "boot", blobs=built / "blobs")
    chunks = image.chunk_map(0)
    units = [(chunks, unit) for unit in range(chunks.nunits)]
    blob = next((built / "blobs").iterdir()).read_bytes()
    seen = 0
    for batch in UnitReader(Slow(built / "blobs", late)).batches(grouped(units)):
        batch.require()
        time.sleep(0.01)
        for i, (_, number) in enumerate(batch.units):
            unit = chunks.unit(number)
            assert batch.uncompressed(i) == blob[unit.coff : unit.coff + unit.clen]
            seen += 1
    assert seen == chunks.nunits


@pytest.mark.usefixtures("small_batches")
def test_a_short_read_is_an_error_of_its_units(built: Path) -> None:
    image = rafs_v6.open(built / "boot", blobs=built / "blobs")
    chunks = image.chunk_map(0)

    def groups() -> Iterator[list[stream_module.WantedUnit]]:
        yield from grouped((chunks, unit) for unit in range(chunks.nunits))

    reader = UnitReader(lambda blob_id, offset, length: bytes(length - 1))
    for batch in reader.batches(groups()):
        assert len(batch.unread) == len(batch.units)
        with pytest.raises(rafs_v6.ImageError, match="bytes came for"):
            batch.require()
