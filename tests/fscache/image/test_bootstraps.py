"""Copies of bootstraps: whole or not at all, read once, on the disk before a kernel mounts them."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nydus_fscache.errors import BadImage, CacheDirError
from nydus_fscache.image.bootstraps import PIECE, Bootstraps

SMALL, LARGE = b"data", os.urandom(PIECE) * 3 + b"end"


def _in_pieces(data: bytes) -> Iterator[memoryview]:
    """One buffer for all of them, as a reader of files has it."""
    buffer = memoryview(bytearray(PIECE))
    for at in range(0, len(data), PIECE):
        piece = data[at : at + PIECE]
        buffer[: len(piece)] = piece
        yield buffer[: len(piece)]


class Given:
    """A bootstrap, and how often its bytes were asked for."""

    def __init__(self, data: bytes) -> None:
        self.data, self.reads = data, 0

    def pieces(self) -> Iterator[memoryview]:
        self.reads += 1
        return _in_pieces(self.data)


def _keep(copies: Bootstraps, data: bytes) -> str:
    return copies.keep(len(data), lambda: _in_pieces(data))


@pytest.mark.parametrize("data", [SMALL, LARGE, b""])
def test_a_copy_has_the_bytes_and_is_named_by_them(tmp_path: Path, data: bytes) -> None:
    copies = Bootstraps(tmp_path)
    digest = _keep(copies, data)
    copies.wait_until_durable(digest)
    assert digest == hashlib.sha256(data).hexdigest()
    assert copies.path(digest).read_bytes() == data
    assert os.listdir(tmp_path) == [f"{digest}.boot"]
    assert copies.is_verified(digest)


def test_what_is_there_is_neither_written_nor_read_again(tmp_path: Path) -> None:
    copies, given = Bootstraps(tmp_path), Given(LARGE)
    digest = copies.keep(len(LARGE), given.pieces)
    assert given.reads == 1, "hashed while it was copied"
    inode = copies.path(digest).stat().st_ino
    before = _bytes_read()
    assert copies.keep(len(LARGE), given.pieces) == digest
    assert _bytes_read() - before < PIECE, "the copy is known to be good"
    assert given.reads == 2
    again = Bootstraps(tmp_path)  # of the next process, which does not know it
    assert not again.is_verified(digest)
    assert again.keep(len(LARGE), given.pieces) == digest
    assert again.is_verified(digest)
    assert copies.path(digest).stat().st_ino == inode, "mounts have it, and leases are asked of it"


def _bytes_read() -> int:
    """By this process, with read(2) and its like."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


@pytest.mark.parametrize("harm", ["changed", "cut", "gone", "link"])
def test_a_copy_that_is_not_ours_any_more_is_made_again(tmp_path: Path, harm: str) -> None:
    copies = Bootstraps(tmp_path / "images")
    copies.directory.mkdir()
    digest = _keep(copies, LARGE)
    path = copies.path(digest)
    if harm == "changed":
        path.write_bytes(LARGE[:-1] + b"!")
    elif harm == "cut":
        os.truncate(path, PIECE)
    else:
        path.unlink()
    if harm == "link":
        (tmp_path / "other").write_bytes(LARGE)
        path.symlink_to(tmp_path / "other")
    assert not copies.is_verified(digest)
    assert _keep(copies, LARGE) == digest
    assert not path.is_symlink()
    assert path.read_bytes() == LARGE
    assert copies.is_verified(digest)


def test_a_source_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    def breaks() -> Iterator[bytes]:
        yield LARGE[:PIECE]
        raise BadImage("cannot read it")

    copies = Bootstraps(tmp_path)
    with pytest.raises(BadImage):
        copies.keep(len(LARGE), breaks)
    assert os.listdir(tmp_path) == []
    _keep(copies, LARGE)


def test_a_disk_that_does_not_take_it_refuses_the_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    copies = Bootstraps(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        digest = _keep(copies, SMALL)
        with pytest.raises(CacheDirError, match="Input/output"):
            copies.wait_until_durable(digest)
    assert os.listdir(tmp_path) == [], "its pages may be dropped, and others be read"
    assert _keep(copies, SMALL) == digest
    copies.wait_until_durable(digest)


def test_two_mounts_of_one_new_image_at_once(tmp_path: Path) -> None:
    """The second comes for certain while the first is writing the bootstrap."""
    copies = Bootstraps(tmp_path)
    writing, may_end = threading.Event(), threading.Event()

    def slowly() -> Iterator[bytes]:
        writing.set()
        assert may_end.wait(10)
        yield SMALL

    def at_once() -> Iterator[bytes]:
        inodes.append(copies.path(hashlib.sha256(SMALL).hexdigest()).stat().st_ino)
        yield SMALL

    inodes: list[int] = []
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(copies.keep, len(SMALL), slowly)
        assert writing.wait(10)
        second = pool.submit(copies.keep, len(SMALL), at_once)
        may_end.set()
        assert first.result() == second.result()
    assert inodes == [copies.path(first.result()).stat().st_ino], "written once, by the first"
