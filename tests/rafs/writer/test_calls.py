"""How much is done for each of many small files: what is counted here once took most of a build."""

from __future__ import annotations

import os
import random
from array import array
from pathlib import Path

import pytest

import rafs_v6
from rafs_v6._writer import ffi, lib
from rafs_v6.cli import main
from rafs_v6.writer.sources.directory import DirectorySource
from rafs_v6.writer.tree import NONE, Tree

FILES, DIRECTORIES = 300, 3


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    for number in range(DIRECTORIES):
        (top / f"d{number}").mkdir(parents=True)
    for number in range(FILES):
        (top / f"d{number % DIRECTORIES}" / f"f{number}").write_bytes(b"%d" % number)
    (top / "link").symlink_to("d0")
    os.link(top / "d0" / "f0", top / "d1" / "another")
    return top


def test_plain_files_are_looked_at_a_directory_at_a_time(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[bytes] = []
    lstat = os.lstat

    def counted(path: bytes) -> os.stat_result:
        looked.append(path)
        return lstat(path)

    monkeypatch.setattr(os, "lstat", counted)
    source = DirectorySource(tree)
    ours = [p.removeprefix(os.fsencode(tree)) for p in looked if isinstance(p, bytes)]
    assert sorted(ours) == [b"/d0", b"/d0/f0", b"/d1", b"/d1/another", b"/d2", b"/link"]
    assert len(source.tree) == 1 + DIRECTORIES + FILES + 2
    files = source.tree.unread()
    assert len(files) == FILES, "the second name of a file is not read again"
    assert list(files[:2]) == sorted(files)[:2]
    early = [source.tree.find(b"/d2/f8"), source.tree.find(b"/d1/another")]
    assert early[0] is not None
    assert early[1] is not None
    first = source.tree.unread([early[0], early[1]])
    assert first[:2] == array("I", [early[0], source.tree.link[early[1]]])
    assert sorted(first) == sorted(files)


def test_no_path_is_made_for_a_file_that_is_read(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[int] = []
    path = Tree.path
    monkeypatch.setattr(Tree, "path", lambda self, row: paths.append(row) or path(self, row))
    assert main(["create", "-B", str(tmp_path / "boot"), "-D", str(tmp_path), str(tree)]) == 0
    assert not paths
    with rafs_v6.open(tmp_path / "boot", blobs=tmp_path) as image:
        for number in range(FILES):
            name = f"/d{number % DIRECTORIES}/f{number}"
            assert image.read(image.resolve(name)) == b"%d" % number


@pytest.mark.parametrize("name", [b"n" * 255, b"\xff\x01 \n", "ü".encode()])
def test_names_are_bytes(tmp_path: Path, name: bytes) -> None:
    (tmp_path / "t").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "t") + b"/" + name)).write_bytes(b"x")
    source = DirectorySource(tmp_path / "t")
    assert [source.tree.name(row) for row in source.tree.children(0)] == [name]
    assert source.tree.at[1] == NONE


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    gone = tmp_path / "t" / "gone"
    gone.mkdir()
    source = DirectorySource(tmp_path / "t")
    gone.rmdir()
    with pytest.raises(FileNotFoundError) as error:
        source._scan(ffi.gc(lib.rafs_scan_new(), lib.rafs_scan_free), os.fsencode(gone))
    assert error.value.filename == os.fsencode(gone)


def test_data_that_do_not_shrink_are_found_by_samples(tmp_path: Path) -> None:
    """Between the samples lie zeros: only who goes through all of it could know."""
    (tmp_path / "t").mkdir()
    size, probe = 1 << 20, 16 << 10
    data = bytearray(size)
    dice = random.Random(1)
    for part in range(4):
        at = max(0, min(size - probe, (size - 8192) * part // 3 - 4096))
        data[at : at + probe] = dice.randbytes(probe)
    (tmp_path / "t" / "f").write_bytes(data)
    assert main(["create", "-B", str(tmp_path / "boot"), "-D", str(tmp_path),
                 "-J", str(tmp_path / "json"), str(tmp_path / "t")]) == 0  # fmt: skip
    (blob,) = (p for p in tmp_path.iterdir() if len(p.name) == 64)
    assert blob.stat().st_size >= size, "stored as it is"
    with rafs_v6.open(tmp_path / "boot", blobs=tmp_path) as image:
        assert image.read(image.resolve("/f")) == data
