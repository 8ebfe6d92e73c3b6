"""The golden layers built with every kind of option: the kernel shows what the source holds."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import Path

import pytest
from build_kit import differences, flatten, golden_tree, manifest, mounted

import rafs_v6
from rafs_v6.cli import main

# Every pair of type, compressor, digester, chunk size and layer that says something of its own.
_COVERING = [
    (1, "tar-rafs", "--compressor none --digester sha256 --chunk-size 0x1000"),
    (1, "targz-ref", "--digester blake3 --chunk-size 0x10000 --features blob-toc"),
    (1, "tar-tarfs", ""),
    (2, "targz-rafs", "--compressor lz4_block --digester blake3 --chunk-size 0x10000"),
    (2, "targz-ref", "--chunk-size 0x1000000"),
    (2, "tar-tarfs", "--chunk-size 0x1000"),
    (2, "dir-rafs", "--compressor zstd --digester sha256 --features blob-toc"),
    (2, "tar-rafs", "--compressor lz4_block --batch-size 0x10000 --features blob-toc"),
    (2, "dir-rafs", "--compressor none --batch-size 0x1000 --chunk-size 0x1000 --encrypt"),
    (3, "tar-rafs", "--compressor zstd --digester blake3 --chunk-size 0x1000000"),
    (3, "targz-rafs", "--batch-size 0x100000 --encrypt --features blob-toc"),
    (3, "targz-ref", "--chunk-size 0x1000 --digester sha256"),
]


@pytest.fixture(scope="module")
def trees(
    golden: Path, layers: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[int, dict[str, dict[str, object]]]:
    """What each layer holds: as tar extracts it, or as the golden images show it."""
    out = tmp_path_factory.mktemp("layer")
    subprocess.run(["tar", "-xpzf", layers[0], "-C", out], check=True)
    images = golden / "images"
    return {
        1: manifest(golden, out),
        2: golden_tree(images / "one-batch" / "expected.jsonl"),
        3: golden_tree(images / "one-lz4" / "expected.jsonl"),
    }


def _source(kind: str, layer: Path, out: Path) -> Path:
    if kind.startswith("targz"):
        return layer
    if kind == "dir-rafs":
        (out / "tree").mkdir()
        subprocess.run(["tar", "-xpzf", layer, "-C", out / "tree"], check=True)
        return out / "tree"
    tar = out / "layer.tar"
    with gzip.open(layer) as plain, tar.open("wb") as f:
        shutil.copyfileobj(plain, f)
    return tar


@pytest.mark.parametrize(("number", "kind", "options"), _COVERING)
def test_the_kernel_shows_what_the_layer_holds(
    number: int, kind: str, options: str, *, golden: Path, layers: list[Path],
    trees: dict[int, dict[str, dict[str, object]]], tmp_path: Path,
) -> None:  # fmt: skip
    source, blobs = _source(kind, layers[number - 1], tmp_path), tmp_path / "blobs"
    blobs.mkdir()
    boot = tmp_path / "image.boot"
    argv = ["create", "-t", kind, "-B", str(boot), "-D", str(blobs), *options.split()]
    assert main([*argv, "--whiteout-spec", "none", str(source)]) == 0
    image = rafs_v6.open(boot, blobs=blobs)
    if kind in ("targz-ref", "tar-tarfs"):
        shutil.copyfile(source, blobs / image.bootstrap.blobs[0].blob_id)
    with mounted(boot, flatten(image, blobs, tmp_path), tmp_path / "mnt") as at:
        got = manifest(golden, at)
    root = trees[number].get("/", {})
    root["mtime"] = None  # of a directory source it is that of the copy (format.md 1.13)
    assert differences(got, trees[number]) == []
