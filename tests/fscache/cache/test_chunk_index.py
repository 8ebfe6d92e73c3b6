"""The index of chunks on disk: what is noted is found, within its bounds, whatever happens."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from nydus_fscache.cache.chunk_index import NAME, ChunkIndex, Key, Place


def _key(number: int) -> Key:
    return 1, hashlib.sha256(b"%d" % number).digest()


def _add(index: ChunkIndex, name: str, numbers: range, identity: str = "i") -> None:
    index.add(name, identity, [(_key(n), n, n * 4096, 4096) for n in numbers])


def _names(index: ChunkIndex, number: int) -> list[str]:
    return [place.name for place in index.find([_key(number)]).get(_key(number), [])]


def test_a_name_stands_for_the_chunks_of_its_newest_identity(tmp_path: Path) -> None:
    index = ChunkIndex(tmp_path)
    _add(index, "a", range(3), "old")
    _add(index, "b", range(2, 5))
    _add(index, "a", range(1, 2), "new")
    index.close()
    index = ChunkIndex(tmp_path)  # after a restart
    assert index.knows("a", "new")
    assert not index.knows("a", "old")
    assert index.find([_key(1), _key(9)]) == {_key(1): [Place("a", "new", 1, 4096, 4096)]}
    assert _names(index, 0) == []
    assert _names(index, 2) == ["b"]
    assert index.find([(2, _key(2)[1])]) == {}  # another algorithm's digest
    index.forget("b")
    assert _names(index, 2) == []
    index.close()


def test_it_keeps_its_size_by_giving_up_the_oldest(tmp_path: Path) -> None:
    limit = 256 << 10
    index = ChunkIndex(tmp_path, limit)
    for blob in range(30):
        _add(index, f"blob{blob}", range(blob * 1000, blob * 1000 + 1000))
    assert (tmp_path / NAME).stat().st_size < 2 * limit
    assert _names(index, 29_500) == ["blob29"]
    assert _names(index, 0) == []
    _add(index, "huge", range(100_000, 120_000))  # more than there is room for
    assert (tmp_path / NAME).stat().st_size < 2 * limit
    index.close()


@pytest.mark.parametrize("harm", ["noise", "cut", "page", "directory", "link", "foreign"])
def test_damage_is_a_miss_and_heals(tmp_path: Path, harm: str) -> None:
    index = ChunkIndex(tmp_path)
    _add(index, "a", range(2000))
    index.close()
    path, content = tmp_path / NAME, (tmp_path / NAME).read_bytes()
    path.unlink()
    if harm == "directory":
        path.mkdir()
    elif harm == "link":
        outside = tmp_path / "outside"
        outside.write_bytes(b"kept")
        path.symlink_to(outside)
    else:
        path.write_bytes(
            {
                "noise": os.urandom(len(content)),
                "cut": content[: len(content) // 2],
                "page": content[:4096] + bytes(len(content) - 4096),
                "foreign": content[:60] + b"\0\0\0\7" + content[64:],  # PRAGMA user_version
            }[harm]
        )
        path.chmod(0o600)
    index = ChunkIndex(tmp_path)
    assert all(name == "a" for n in range(2000) for name in _names(index, n))
    for _ in range(2):  # the first may be what finds the damage
        _add(index, "b", range(2000))
    assert all("b" in _names(index, n) for n in range(2000))
    index.close()
    if harm == "link":
        assert outside.read_bytes() == b"kept"


def test_a_blob_costs_the_same_among_few_and_many(tmp_path: Path) -> None:
    """Steps of the database for each that goes; of names that it has not, none."""
    index = ChunkIndex(tmp_path)
    for blob in range(50):
        _add(index, f"b{blob}", range(blob, blob + 1))
    steps: list[str] = []
    assert index._db is not None
    index._db.set_trace_callback(steps.append)
    for blob in range(50, 1000):
        index.forget(f"b{blob}")
    assert steps == []
    for blob in range(50):
        index.forget(f"b{blob}")
    assert len([s for s in steps if s.startswith("DELETE")]) == 50
    assert not index._blobs
    assert not index._numbers
    index.close()
