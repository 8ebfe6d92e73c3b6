"""Blobs with their bootstrap inside are mounted as they are."""

from __future__ import annotations

import gzip
import hashlib
import shutil
from pathlib import Path

import pytest
from built import create
from rig import Rig
from tar_kit import DIR, member, tar

DATA = hashlib.sha512(b"").digest() * 2000


def _blob(base: Path, kind: str, *options: str) -> Path:
    """Under its sha256 in ``base``/blobs, with the layer that it refers to, if it does."""
    source, blobs, made = base / "layer", base / "blobs", base / "blob"
    blobs.mkdir()
    layer = tar(member("d", DIR), member("d/f", data=DATA))
    source.write_bytes(gzip.compress(layer, mtime=0) if kind == "targz-ref" else layer)
    create("-t", kind, "--blob-inline-meta", "--blob", made, *options, source)
    if kind == "targz-ref":
        shutil.copy(source, blobs / hashlib.sha256(source.read_bytes()).hexdigest())
    return made.rename(blobs / hashlib.sha256(made.read_bytes()).hexdigest())


@pytest.mark.parametrize("kind", ["tar-rafs", "tar-rafs toc", "targz-ref"])
def test_a_blob_is_mounted_by_its_own_name_or_any(rig: Rig, tmp_path: Path, kind: str) -> None:
    name, _, toc = kind.partition(" ")
    blob = _blob(tmp_path, name, *(("--features", "blob-toc") if toc else ()))
    copy = Path(shutil.copy(blob, tmp_path / "a copy"))
    for source in (blob, copy):
        mount = rig.mount(source, blob.parent, f"mnt-{source.name[:3]}")
        assert (mount / "d/f").read_bytes() == DATA
    ids = {blob["id"] for blob in rig.status()["blobs"]}
    assert len(ids) == 1, "the copy is the same blob"


def test_what_is_neither_is_refused(rig: Rig, tmp_path: Path) -> None:
    blob = _blob(tmp_path, "tar-rafs")
    junk = tmp_path / "junk"
    for data in (b"\xa5" * 9000, blob.read_bytes()[:-1], b""):
        junk.write_bytes(data)
        options = ["--blob-dir", blob.parent]
        done = rig.run("mount", junk, rig.mountpoint(), *options, check=False)
        assert done.returncode == 3, done.stderr
        assert "Traceback" not in done.stderr
