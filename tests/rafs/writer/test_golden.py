"""Our images of the golden layers against the golden images, and against the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
from build_kit import differences, digests, flatten, golden_tree, image_tree, manifest, mounted

import rafs_v6
from rafs_v6.cli import main


def test_merged_layers_equal_golden(golden: Path, layers: list[Path], tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    built = []
    for layer in layers:
        before = set(blobs.iterdir())
        assert main([
            "create", "-t", "targz-rafs", "--blob-inline-meta", "--features", "blob-toc",
            "-D", str(blobs), str(layer),
        ]) == 0  # fmt: skip
        built += set(blobs.iterdir()) - before
    boot = tmp_path / "image.boot"
    words = ["-l", "warn", "merge", "-B", str(boot), "-D", str(tmp_path)]
    assert main([*words, *map(str, built)]) == 0
    image = rafs_v6.open(boot, blobs=blobs)
    want = golden / "images" / "layers-zstd"
    assert differences(image_tree(image), golden_tree(want / "expected.jsonl")) == []
    with mounted(boot, flatten(image, blobs, tmp_path), tmp_path / "mnt") as at:
        got = manifest(golden, at)
    assert differences(got, golden_tree(want / "expected.jsonl")) == []


def test_estargz_equals_golden(golden: Path, tmp_path: Path) -> None:
    source = next((golden / "images" / "estargz-ref" / "blobs").glob("87757e*"))
    want = golden / "images" / "estargz-rafs"
    theirs = rafs_v6.open(want / "image.boot")
    boot = tmp_path / "image.boot"
    assert main([
        "create", "-t", "estargz-rafs", "-B", str(boot), "-D", str(tmp_path), "--digester",
        theirs.bootstrap.blobs[0].digester.name.lower(), str(source),
    ]) == 0  # fmt: skip
    image = rafs_v6.open(boot, blobs=tmp_path)
    assert digests(image.bootstrap) == digests(theirs.bootstrap)
    assert differences(image_tree(image), golden_tree(want / "expected.jsonl")) == []


@pytest.mark.parametrize(
    ("name", "layer", "options"),
    [
        ("one-lz4", 3, ["--compressor", "lz4_block", "--digester", "sha256"]),
        ("one-none-64k", 3, ["--compressor", "none", "--chunk-size", "0x10000"]),
        ("one-batch", 2, ["--batch-size", "0x100000"]),
        ("one-encrypted", 3, ["--encrypt"]),
    ],
)
def test_one_layer_equals_golden(
    golden: Path, layers: list[Path], tmp_path: Path, name: str, layer: int, options: list[str]
) -> None:
    want = golden / "images" / name
    theirs = rafs_v6.open(want / "image.boot")
    boot = tmp_path / "image.boot"
    options += ["--digester", theirs.bootstrap.blobs[0].digester.name.lower()]
    assert main([
        "create", "-t", "targz-rafs", "-B", str(boot), "-D", str(tmp_path), *options,
        str(layers[layer - 1]),
    ]) == 0  # fmt: skip
    image = rafs_v6.open(boot, blobs=tmp_path)
    assert digests(image.bootstrap) == digests(theirs.bootstrap)
    assert image.bootstrap.tables.flags == theirs.bootstrap.tables.flags
    assert image.bootstrap.blobs[0].features == theirs.bootstrap.blobs[0].features
    assert differences(image_tree(image), golden_tree(want / "expected.jsonl")) == []


def test_the_golden_dictionary_gives_the_golden_chunks(
    golden: Path, layers: list[Path], tmp_path: Path
) -> None:
    low, up = tmp_path / "low.boot", tmp_path / "up.boot"
    create = ["create", "-t", "targz-rafs", "-D", str(tmp_path)]
    assert main([*create, "-B", str(low), str(layers[0])]) == 0
    assert main([*create, "-B", str(up), "--chunk-dict", f"bootstrap={low}", str(layers[2])]) == 0
    want = golden / "images" / "chunk-dict"
    theirs, image = rafs_v6.open(want / "image.boot"), rafs_v6.open(up, blobs=tmp_path)
    assert differences(image_tree(image), golden_tree(want / "expected.jsonl")) == []

    def references(boot: rafs_v6.Bootstrap) -> list[tuple[bytes, int, int, int]]:
        # Not the offsets: the original stores a tar's files in another order.
        return [
            (path, i, chunk.blob_index, chunk.size)
            for path, inode in boot.walk() if inode.is_reg
            for i, chunk in enumerate(boot.chunks(inode))
        ]  # fmt: skip

    assert references(image.bootstrap) == references(theirs.bootstrap)
