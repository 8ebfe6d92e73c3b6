"""Our images of the golden layers against the golden images, and against the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
from build_kit import differences, digests, flatten, golden_tree, image_tree, manifest, mounted

import rafs_v6
from rafs_v6.build.cli import main


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
    assert main(["merge", "-B", str(boot), *map(str, built)]) == 0
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
    ("name", "options"),
    [
        ("one-lz4", ["--compressor", "lz4_block", "--digester", "sha256"]),
        ("one-none-64k", ["--compressor", "none", "--chunk-size", "0x10000"]),
    ],
)
def test_layer3_equals_golden(
    golden: Path, layers: list[Path], tmp_path: Path, name: str, options: list[str]
) -> None:
    want = golden / "images" / name
    theirs = rafs_v6.open(want / "image.boot")
    boot = tmp_path / "image.boot"
    options += ["--digester", theirs.bootstrap.blobs[0].digester.name.lower()]
    assert main([
        "create", "-t", "targz-rafs", "-B", str(boot), "-D", str(tmp_path), *options,
        str(layers[2]),
    ]) == 0  # fmt: skip
    image = rafs_v6.open(boot, blobs=tmp_path)
    assert digests(image.bootstrap) == digests(theirs.bootstrap)
    assert differences(image_tree(image), golden_tree(want / "expected.jsonl")) == []
