"""What an image says of its blobs is checked before it is believed, and not kept when refused."""

from __future__ import annotations

import hashlib
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from built import build_image, create

from nydus_fscache.backend.make import make_backend
from nydus_fscache.errors import BackendError, BadImage
from nydus_fscache.image import image as image_module
from nydus_fscache.image.image import Image, load_image

Load = Callable[[Path, Path], Image]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a bootstrap with its blobs; each time by a new backend, as each mount does."""

    def load(boot: Path, blobs: Path) -> Image:
        config = {"type": "localfs", "localfs": {"dir": str(blobs)}}
        backend = make_backend(config)
        try:
            digest = hashlib.sha256(boot.read_bytes()).hexdigest()
            return load_image(boot, digest, backend, config, "fanotify", tmp_path / "meta")
        finally:
            backend.close()

    return load


def _layer(base: Path, kind: str) -> tuple[Path, Path]:
    """(bootstrap, blob) of an image whose blob is the layer itself."""
    name, mode = ("l.tar", "w") if kind == "tar-tarfs" else ("l.tar.gz", "w:gz")
    (base / "tree").mkdir()
    for i in range(4):
        (base / "tree" / f"f{i}").write_bytes(bytes([i]) * 90_000)
    with tarfile.open(base / name, mode) as tar:  # type: ignore[call-overload]
        tar.add(base / "tree", ".")
    blobs = base / "blobs"
    blobs.mkdir()
    create("-t", kind, "-B", base / "boot", "-D", blobs, base / name)
    layer = (base / name).read_bytes()
    blob = blobs / hashlib.sha256(layer).hexdigest()
    blob.write_bytes(layer)
    return base / "boot", blob


@pytest.mark.parametrize("kind", ["tar-tarfs", "targz-ref"])
def test_a_blob_that_was_cut_and_repaired_is_taken(tmp_path: Path, load: Load, kind: str) -> None:
    boot, blob = _layer(tmp_path, kind)
    whole = blob.read_bytes()
    for part in (0.6, 0.3):
        blob.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(BackendError, match=f"{int(len(whole) * part)} bytes in the backend"):
            load(boot, blob.parent)
    blob.write_bytes(whole)
    load(boot, blob.parent)


def test_metadata_that_a_broken_blob_gave_is_asked_for_again(tmp_path: Path, load: Load) -> None:
    out = tmp_path / "out"
    out.mkdir()
    options = ("-B", tmp_path / "boot", "-D", out)
    build_image(tmp_path / "tree", {f"f{i}": bytes([i]) * 70_000 for i in range(9)}, *options)
    (blob,) = out.iterdir()
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-8000] + bytes(8000))  # as long as it was, with broken tables
    with pytest.raises(BadImage):
        load(tmp_path / "boot", out)
    blob.write_bytes(whole)
    image = load(tmp_path / "boot", out)
    assert image.blobs[0].chunks.nchunks


def test_metadata_in_the_cache_that_rotted_is_asked_for_again(tmp_path: Path, load: Load) -> None:
    out = tmp_path / "out"
    out.mkdir()
    options = ("-B", tmp_path / "boot", "-D", out)
    build_image(tmp_path / "tree", {f"f{i}": bytes([i]) * 70_000 for i in range(9)}, *options)
    load(tmp_path / "boot", out)
    kept = sorted((tmp_path / "meta").iterdir())
    assert kept
    for path in kept:  # well summed, and another blob's
        data = b"7" if path.name.endswith(".size") else bytes(path.stat().st_size - 32)
        path.write_bytes(data + hashlib.sha256(data).digest())
    load(tmp_path / "boot", out)


@pytest.mark.parametrize("where", ["table", "slot", "both"])
def test_memory_goes_by_the_chunks_and_not_by_a_stated_size(
    tmp_path: Path, load: Load, where: str
) -> None:
    """4 TiB stated: a page map of 128 MiB, for a bootstrap of some KiB."""
    out = tmp_path / "out"
    out.mkdir()
    boot = tmp_path / "boot"
    build_image(tmp_path / "tree", {"f": bytes(range(250)) * 280}, "-B", boot, "-D", out)
    size = load(boot, out).blobs[0].info.uncompressed_size
    (blob,) = out.iterdir()
    data = bytearray(boot.read_bytes())
    stated = 4 << 40
    old, new = struct.pack("<Q", size), struct.pack("<Q", stated)
    slots = (struct.pack("<I", -(-size // 4096)), struct.pack("<I", stated >> 12))
    changed = 0
    if where != "slot":
        while (at := data.find(old)) >= 0:
            data[at : at + 8], changed = new, changed + 1
    name, at = blob.name.encode(), -1
    while where != "table" and (at := data.find(name, at + 1)) >= 0:
        if data[at + 64 : at + 68] == slots[0]:
            data[at + 64 : at + 68], changed = slots[1], changed + 1
    assert changed
    (tmp_path / "huge").write_bytes(data)
    with pytest.raises(BadImage):
        load(tmp_path / "huge", out)


def test_chunks_are_paid_for_by_data_or_files(tmp_path: Path) -> None:
    """A table of a million equal chunks compresses to nothing, and takes memory for each."""

    def info(count: int, data: int, blob_id: str = "a", *, tarfs: bool = False) -> Any:
        return SimpleNamespace(chunk_count=count, data_size=data, blob_id=blob_id, is_tarfs=tarfs)

    million = 1 << 20
    image_module._check_counts([info(65536, 1)], 0)
    image_module._check_counts([info(million, million)], 64 * million)  # tiny files
    image_module._check_counts([info(million, 64 * million)], 4096)  # of a dictionary
    image_module._check_counts([info(million, 1, tarfs=True)], 4096)
    many = [info(65536, 1, str(i)) for i in range(254)]
    same = [info(million, 32 * million, "a") for _ in range(2)]
    for infos in ([info(million, million)], many, same):
        with pytest.raises(BadImage, match="chunks more than their data pay for"):
            image_module._check_counts(infos, 4096)
