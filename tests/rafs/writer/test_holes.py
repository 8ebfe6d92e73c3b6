"""Holes of sparse files are found by the file system, not read."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import pytest

import rafs_v6
from rafs_v6._writer import ffi, lib
from rafs_v6.cli import main
from rafs_v6.format.erofs import Digester
from rafs_v6.writer.tree import ROOT, Node, Tree

MIB = 1 << 20


def _bytes_read() -> int:
    found = re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())
    assert found
    return int(found[1])


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """2 GiB and 3 bytes: data in the middle and near the end."""
    path = tmp_path / "tree" / "sparse"
    path.parent.mkdir()
    with path.open("wb") as f:
        f.seek(700 * MIB + 5)
        f.write(b"middle")
        f.seek(2000 * MIB)
        f.write(b"late")
        f.truncate(2048 * MIB + 3)
    return path


@pytest.mark.parametrize("digester", ["blake3", "sha256"])
def test_a_sparse_file_is_not_read(sparse: Path, tmp_path: Path, digester: str) -> None:
    boot, blobs = tmp_path / "boot", tmp_path / "blobs"
    blobs.mkdir()
    before = _bytes_read()
    create = ["create", "--digester", digester, "-B", str(boot), "-D", str(blobs)]
    assert main([*create, str(sparse.parent)]) == 0
    assert _bytes_read() - before < 64 * MIB
    with rafs_v6.open(boot, blobs=blobs) as image:
        inode = image.lookup("/sparse")
        refs = list(image.bootstrap.chunks(inode))
        assert len(refs) == 2049
        zeros = bytes(MIB)
        holes = {r.chunk_index for i, r in enumerate(refs) if i not in (700, 2000, 2048)}
        assert len(holes) == 1
        with image.open("/sparse") as f:
            assert f.read(MIB) == zeros
            for at in (700, 2000):
                f.seek(at * MIB)
                with sparse.open("rb") as want:
                    want.seek(at * MIB)
                    assert f.read(MIB) == want.read(MIB)
            f.seek(2048 * MIB)
            assert f.read() == bytes(3)
    assert main(["check", str(boot), "-D", str(blobs)]) == 0


def _read(path: Path, off: int, size: int, digester: Digester) -> tuple[int, int, bytes]:
    chunks, arena = ffi.new("struct rafs_read_chunk[1]"), ffi.new("uint8_t[]", MIB)
    tree = Tree()
    tree.add(ROOT, b"", Node(0o40755))
    row = tree.add(ROOT, os.fsencode(path.name), Node(0o100644))
    chunks[0].fd, chunks[0].off, chunks[0].len = lib.RAFS_FD_PATH, off, size
    chunks[0].row = row
    with tree.in_c("parent", "names", "name_off") as rows:
        top = os.fsencode(path.parent)
        rc = lib.rafs_build_read(chunks, 1, top, rows, arena, MIB, digester, 1)
    return rc, chunks[0].hole, bytes(chunks[0].digest)


def test_the_digest_of_a_hole_is_that_of_its_zeros(sparse: Path) -> None:
    for size in (MIB, 1 << 16, MIB, 1000, MIB):
        rc, hole, digest = _read(sparse, MIB, size, Digester.SHA256)
        assert (rc, digest) == (0, hashlib.sha256(bytes(size)).digest())
        assert hole == (size > 1000)
    blake = _read(sparse, MIB, MIB, Digester.BLAKE3)[2]
    assert blake != hashlib.sha256(bytes(MIB)).digest()


def test_a_file_that_shrank_is_no_hole(sparse: Path) -> None:
    os.truncate(sparse, 700 * MIB)
    assert _read(sparse, 800 * MIB, MIB, Digester.SHA256)[0] < 0
    assert _read(sparse, 700 * MIB - MIB // 2, MIB, Digester.SHA256)[0] < 0
    assert _read(sparse.parent / "none", 0, 1, Digester.SHA256)[0] < 0
