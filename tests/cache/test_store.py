"""Names of cache files: ids that are safe, and no file for two descriptions of one id."""

from __future__ import annotations

from pathlib import Path

import pytest

from nydus_fscache.cache.store import Store, checked_blob_id
from nydus_fscache.errors import BadImage, CacheDirError


@pytest.mark.parametrize(
    "blob_id", ["", ".", "..", "a/b", "../x", "a\0", "x" * 65, "-x", "~a", "ä", "a\n"]
)
def test_ids_that_could_escape(blob_id: str) -> None:
    with pytest.raises(BadImage):
        checked_blob_id(blob_id)


def test_two_descriptions_of_one_id_share_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "root")
    honest = store.claim_name("blob", "a" * 64, {})
    hostile = store.claim_name("blob", "b" * 64, {honest: "a" * 64})
    assert honest == "blob"
    assert hostile != honest
    assert store.claim_name("blob", "a" * 64, {honest: "a" * 64}) == honest
    store.close()


def test_data_of_another_description_are_dropped(tmp_path: Path) -> None:
    store = Store(tmp_path / "root")
    store.claim_name("blob", "a" * 64, {})
    data = store.cache / "blob.blob.data"
    data.write_bytes(b"of a")
    assert store.claim_name("blob", "a" * 64, {}) == "blob"
    assert data.exists(), "the same description keeps its data"
    assert store.claim_name("blob", "b" * 64, {}) == "blob"
    assert not data.exists()
    store.close()


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
