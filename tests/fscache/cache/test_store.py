"""The cache directory: names that are safe, and data that are believed only with their record."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nydus_fscache.cache.blob_files import BlobFiles, claim_name
from nydus_fscache.cache.store import Store
from nydus_fscache.errors import BadImage, CacheDirError
from nydus_fscache.image.blob_id import checked_blob_id

A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    "blob_id", ["", ".", "..", "a/b", "../x", "a\0", "x" * 65, "-x", "~a", "ä", "a\n"]
)
def test_ids_that_could_escape(blob_id: str) -> None:
    with pytest.raises(BadImage):
        checked_blob_id(blob_id)


def test_two_descriptions_of_one_id_share_nothing() -> None:
    assert claim_name("blob", A, {}, {}) == "blob"
    hostile = claim_name("blob", B, {"blob": A}, {})
    assert hostile != "blob"
    assert claim_name("blob", A, {"blob": A}, {}) == "blob"
    # once named, it keeps its name: when the other is gone, and for a successor
    assert claim_name("blob", B, {hostile: B}, {}) == hostile
    assert claim_name("blob", B, {}, {hostile, "blob"}) == hostile


def _record(files: BlobFiles, identity: str) -> None:
    """One page of data, recorded."""
    fd = files.open_data("blob", identity, 8192)
    os.pwrite(fd, b"x" * 4096, 0)
    chunk_map = files.open_chunk_map("blob", 2, fd)
    assert chunk_map is not None
    chunk_map.record([(0, 1)])
    chunk_map.close()
    os.close(fd)


def _has_record(files: BlobFiles, identity: str) -> bool:
    fd = files.open_data("blob", identity, 8192)
    assert os.fstat(fd).st_size == 8192
    chunk_map = files.open_chunk_map("blob", 2, fd)
    assert chunk_map is not None
    try:
        return chunk_map.has(0, 1)
    finally:
        chunk_map.close()
        os.close(fd)


def test_a_record_is_of_one_description(tmp_path: Path) -> None:
    files = BlobFiles(tmp_path)
    _record(files, A)
    assert _has_record(files, A)
    assert not _has_record(files, B)
    assert not _has_record(files, A), "the record of A is gone for good"


def _cut(path: Path) -> None:
    os.truncate(path, 0)


def _open_to_others(path: Path) -> None:
    path.chmod(0o666)


def _of_another(path: Path) -> None:
    os.chown(path, 65534, 65534)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "in it").touch()


def _second_name(path: Path) -> None:
    os.link(path, path.parent.parent / "kept")


def _copied(path: Path) -> None:
    shutil.copy2(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


def _copied_over(path: Path) -> None:
    saved = path.read_bytes()
    times = path.stat()
    path.write_bytes(saved)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _written(path: Path) -> None:
    with path.open("r+b") as f:
        f.write(b"y")


@pytest.mark.parametrize("touch", [_copied, _copied_over, _written])
def test_data_that_others_wrote_are_not_what_was_recorded(tmp_path: Path, touch: object) -> None:
    """A restored backup, for one: its data may be older than its record."""
    files = BlobFiles(tmp_path)
    _record(files, A)
    assert callable(touch)
    touch(files.path("blob", "blob.data"))
    assert not _has_record(files, A)
    _record(files, A)
    assert _has_record(files, A), "and it heals"


@pytest.mark.parametrize("suffix", ["blob.data", "blob.data.chunk_map", "identity"])
@pytest.mark.parametrize("harm", [_cut, _open_to_others, _of_another, _directory, _second_name])
def test_what_was_harmed_is_not_believed(tmp_path: Path, suffix: str, harm: object) -> None:
    if os.geteuid() and harm is _of_another:
        pytest.skip("NOT ROOT: no file can be given away")
    files = BlobFiles(tmp_path / "cache")
    files.directory.mkdir()
    _record(files, A)
    assert callable(harm)
    harm(files.path("blob", suffix))
    assert not _has_record(files, A)
    _record(files, A)
    assert _has_record(files, A), "and it heals"


def test_one_daemon_a_root(tmp_path: Path) -> None:
    store = Store(tmp_path / "root")
    with pytest.raises(CacheDirError, match="another daemon"):
        Store(tmp_path / "root")
    store.close()
    Store(tmp_path / "root").close()


def test_a_root_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheDirError):
        Store(tmp_path / "root")
