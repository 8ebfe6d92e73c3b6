"""Images built upon others: chunk dictionaries, parents, whiteouts, and merges with them."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from build_kit import flatten, image_tree, mounted

import rafs_v6
from rafs_v6.cli import main
from rafs_v6.format.erofs import Compressor, Digester
from rafs_v6.writer.bootstrap import BlobEntry, Defaults, write_bootstrap
from rafs_v6.writer.chunk_records import ChunkRecords
from rafs_v6.writer.load import load, load_blobs, open_bootstrap
from rafs_v6.writer.tree import ROOT, Node, Tree

_SHARED = os.urandom(150_000)


def _create(boot: Path, blobs: Path, source: Path, *options: str) -> list[str]:
    """Build with 64 KiB chunks; the ids in the JSON."""
    blobs.mkdir(exist_ok=True)
    report = boot.with_suffix(".json")
    assert main([
        "create", "--chunk-size", "0x10000", "-B", str(boot), "-D", str(blobs), "-J", str(report),
        *options, str(source),
    ]) == 0  # fmt: skip
    ids: list[str] = json.loads(report.read_text())["blobs"]
    return ids


def _tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def _contents(image: rafs_v6.Image) -> dict[str, bytes]:
    return {os.fsdecode(p)[1:]: image.read(p) for p, inode in image.walk() if inode.is_reg}


@pytest.fixture
def lower(tmp_path: Path) -> tuple[Path, Path, str]:
    """(bootstrap, directory of blobs, blob id) of an image to build upon."""
    source = _tree(
        tmp_path / "low",
        {"a": _SHARED, "d/keep": b"keep", "d/gone": b"gone", "o/old": b"old", "f": b"file"},
    )
    boot, blobs = tmp_path / "low.boot", tmp_path / "blobs"
    (blob,) = _create(boot, blobs, source, "--compressor", "lz4_block")
    return boot, blobs, blob


@pytest.mark.parametrize("prefix", ["", "bootstrap="])
def test_chunks_of_the_dictionary_are_not_stored_again(
    lower: tuple[Path, Path, str], tmp_path: Path, prefix: str
) -> None:
    dictionary, blobs, known = lower
    files = {"x": b"new" * 10_000, "y": _SHARED, "z": _SHARED[: 1 << 16] + b"tail"}
    boot = tmp_path / "up.boot"
    ids = _create(
        boot, blobs, _tree(tmp_path / "up", files), "--chunk-dict", prefix + str(dictionary)
    )
    image = rafs_v6.open(boot, blobs=blobs)
    # The own blob is used first, by x; its compressor is another than the dictionary's.
    assert ids == [b.blob_id for b in image.bootstrap.blobs]
    assert ids[1:] == [known]
    assert (blobs / ids[0]).stat().st_size < 20_000
    assert [b.compressor.name for b in image.bootstrap.blobs] == ["ZSTD", "LZ4_BLOCK"]
    assert _contents(image) == files
    with mounted(boot, flatten(image, blobs, tmp_path), tmp_path / "mnt") as at:
        assert {p.name: p.read_bytes() for p in at.iterdir()} == files

    again, same = tmp_path / "again.boot", _tree(tmp_path / "same", {"y": _SHARED})
    assert _create(again, blobs, same, "--chunk-dict", str(boot)) == [known]
    assert _contents(rafs_v6.open(again, blobs=blobs)) == {"y": _SHARED}


def test_a_dictionary_of_other_chunks_is_refused_of_another_digester_unused(
    lower: tuple[Path, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dictionary, blobs, known = lower
    source, boot = _tree(tmp_path / "up", {"y": _SHARED}), tmp_path / "up.boot"
    options = ["--chunk-dict", str(dictionary)]
    assert known not in _create(boot, blobs, source, *options, "--digester", "sha256")
    boot.unlink()
    before = set(blobs.iterdir())
    assert main(["create", "-B", str(boot), "-D", str(blobs), *options, str(source)]) == 1
    assert "use the same --chunk-size" in capsys.readouterr().err
    assert not boot.exists()
    assert set(blobs.iterdir()) == before


def _oci(up: Path) -> None:
    _tree(up, {"d/.wh.gone": b"", "o/.wh..wh..opq": b"", ".wh.absent": b""})


def _overlayfs(up: Path) -> None:
    os.mknod(up / "d" / "gone", stat.S_IFCHR | 0o644, os.makedev(0, 0))
    os.setxattr(up / "o", "trusted.overlay.opaque", b"y")


@pytest.mark.parametrize(("spec", "hide"), [("oci", _oci), ("overlayfs", _overlayfs)])
def test_a_layer_over_its_parent(
    lower: tuple[Path, Path, str], tmp_path: Path, spec: str, hide: object
) -> None:
    assert callable(hide)
    parent, blobs, known = lower
    up = _tree(tmp_path / "up", {"d/new": b"new", "o/new": _SHARED, "f/now/dir": b"x"})
    hide(up)
    boot = tmp_path / "up.boot"
    options = ["--whiteout-spec", spec]
    ids = _create(boot, blobs, up, *options, "--parent-bootstrap", str(parent))
    image = rafs_v6.open(boot, blobs=blobs)
    want = {"a": _SHARED, "d/keep": b"keep", "d/new": b"new", "o/new": _SHARED, "f/now/dir": b"x"}
    assert _contents(image) == want
    assert ids[0] == known
    assert len(ids) == 2
    assert "xattrs" not in image_tree(image)["/o"]
    assert "/d/gone" not in image_tree(image)
    # Without a parent there is nothing to hide, and what would hide it is no file of the image.
    _create(boot, blobs, up, *options)
    image = rafs_v6.open(boot, blobs=blobs)
    assert _contents(image) == {"d/new": b"new", "o/new": _SHARED, "f/now/dir": b"x"}
    assert "/d/gone" not in image_tree(image)
    _create(boot, blobs, up, "--whiteout-spec", "none")
    assert len(image_tree(rafs_v6.open(boot, blobs=blobs))) > len(image_tree(image))


def test_merge_over_a_parent_and_with_the_dictionary_of_the_layers(
    lower: tuple[Path, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, blobs, known = lower
    up = _tree(tmp_path / "up", {"x": b"new" * 10_000, "y": _SHARED, "d/.wh.gone": b""})
    layer = tmp_path / "layer"
    assert main([
        "create", "--chunk-size", "0x10000", "--whiteout-spec", "none", "--chunk-dict", str(base),
        "--blob-inline-meta", "--blob", str(layer), str(up),
    ]) == 0  # fmt: skip
    digest = "ab" * 32
    layer.rename(blobs / digest)
    layer, boot, report = blobs / digest, tmp_path / "boot", tmp_path / "json"
    merge = ["merge", "-B", str(boot), "-J", str(report), "--blob-digests", digest]
    assert main([*merge, str(layer)]) == 1
    assert "give the --chunk-dict" in capsys.readouterr().err
    assert not boot.exists()
    merge += ["--chunk-dict", str(base)]
    assert main([*merge, "--blob-sizes", "1,2", str(layer)]) == 1
    assert "--blob-sizes: 2 values for 1 layers" in capsys.readouterr().err
    assert main([*merge, str(layer)]) == 0
    assert _contents(rafs_v6.open(boot, blobs=blobs)) == {"x": b"new" * 10_000, "y": _SHARED}
    document = json.loads(report.read_text())
    assert document["blobs"] == [digest, known]
    assert document["compressor"] == "zstd"
    assert main([*merge, "--parent-bootstrap", str(base), str(layer)]) == 0
    image = rafs_v6.open(boot, blobs=blobs)
    assert set(_contents(image)) == {"a", "d/keep", "o/old", "f", "x", "y"}
    assert [b.blob_id for b in image.bootstrap.blobs] == [known, digest]


def test_a_generated_dictionary_has_what_images_share(
    lower: tuple[Path, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, blobs, known = lower
    boots = [lower[0], tmp_path / "second.boot"]
    second = _tree(tmp_path / "second", {"y": _SHARED, "mine": b"mine"})
    (other,) = _create(boots[1], blobs, second)
    made, report = tmp_path / "dict.boot", tmp_path / "json"
    argv = ["chunkdict", "generate", "-B", str(made), "-J", str(report)]
    assert main([*argv, *map(str, boots)]) == 0
    assert json.loads(report.read_text())["blobs"] == [known]
    dictionary = rafs_v6.open(made, blobs=blobs)
    parts = [_SHARED[i : i + (1 << 16)] for i in range(0, len(_SHARED), 1 << 16)]
    assert sorted(_contents(dictionary).values()) == sorted(parts)
    third = _tree(tmp_path / "third", {"s": _SHARED, "mine": b"mine"})
    ids = _create(tmp_path / "third.boot", blobs, third, "--chunk-dict", str(made))
    assert known in ids
    assert other not in ids
    assert _contents(rafs_v6.open(tmp_path / "third.boot", blobs=blobs))["s"] == _SHARED

    assert main([*argv, str(boots[1])]) == 0
    assert json.loads(report.read_text())["blobs"] == [other]
    assert len(_contents(rafs_v6.open(made, blobs=blobs))) == len(parts) + 1
    made.unlink()
    stranger = tmp_path / "stranger.boot"
    _create(stranger, blobs, _tree(tmp_path / "stranger", {"s": b"strange"}))
    assert main([*argv, str(boots[1]), str(stranger)]) == 1
    assert "no chunk is in two of these images" in capsys.readouterr().err
    assert not made.exists()


def _with_used_records_only(boot: Path) -> None:
    """The chunk table as the original writes it."""
    image = load(boot)
    tree = image.tree
    used = {
        tree.locations.key(location) for row in range(len(tree)) for location in tree.chunks(row)
    }
    blobs = [
        replace(blob, chunks=ChunkRecords(c for c in blob.chunks if (name, c.index) in used))
        for name, blob in image.blobs.items()
    ]
    boot.write_bytes(b"".join(write_bootstrap(tree, blobs, image.defaults)))


def test_what_two_layers_know_of_one_blob_is_joined(
    lower: tuple[Path, Path, str], tmp_path: Path
) -> None:
    dictionary, blobs, known = lower
    boots, want = [], {"a": _SHARED[: 1 << 16], "b": _SHARED[1 << 16 :]}
    for name, data in want.items():
        boots.append(tmp_path / f"{name}.boot")
        source = _tree(tmp_path / name, {name: data})
        assert _create(boots[-1], blobs, source, "--chunk-dict", str(dictionary)) == [known]
        _with_used_records_only(boots[-1])
        assert len(rafs_v6.open(boots[-1]).bootstrap.chunk_table) < 80 * 3
    boot = tmp_path / "boot"
    merge = ["merge", "-B", str(boot), "--chunk-dict", str(dictionary)]
    assert main([*merge, *map(str, boots)]) == 0
    assert _contents(rafs_v6.open(boot, blobs=blobs)) == want
    over = ["--parent-bootstrap", str(boots[0]), "--chunk-dict", str(boots[1])]
    assert _create(boot, blobs, tmp_path / "b", *over) == [known]
    assert _contents(rafs_v6.open(boot, blobs=blobs)) == want


def test_the_same_blob_by_another_digester_is_no_second_blob(
    lower: tuple[Path, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, blobs, _ = lower
    boot = tmp_path / "boot"
    assert main([
        "create", "--chunk-size", "0x10000", "--compressor", "lz4_block", "--digester", "sha256",
        "-B", str(boot), "-D", str(blobs), "--parent-bootstrap", str(parent), str(tmp_path / "low"),
    ]) == 0  # fmt: skip
    assert len(rafs_v6.open(boot).bootstrap.blobs) == 1  # nothing of the parent is left to see
    one = _tree(tmp_path / "one", {"only/here": b"one"})
    ids = _create(boot, blobs, one)
    assert main([
        "create", "--chunk-size", "0x10000", "--digester", "sha256", "-B", str(tmp_path / "two"),
        "-D", str(blobs), "--parent-bootstrap", str(boot),
        str(_tree(tmp_path / "again", {"other": b"one"})),
    ]) == 1  # fmt: skip
    assert f"a new blob would be called {ids[0]}" in capsys.readouterr().err
    assert not (tmp_path / "two").exists()


def _of_254_blobs(lower: Path, target: Path) -> None:
    """An image whose every file is in a blob of its own; all are called the only blob of lower."""
    boot = open_bootstrap(lower)
    (blob,) = load_blobs(boot, lower)
    chunk = next(iter(blob.chunks))
    tree, blobs = Tree(boot.chunk_size), []
    tree.add(ROOT, b"", Node(stat.S_IFDIR | 0o755))
    for i in sorted(range(254), key=str):
        named = replace(blob.record, blob_id=b"%064d" % i)
        blobs.append(BlobEntry(str(i), named, blob.chunks))
        row = tree.add(ROOT, b"%d" % i, Node(stat.S_IFREG, size=chunk.uncompressed_size))
        tree.at[row] = len(tree.refs)
        tree.refs.append(tree.locations.add(str(i), chunk.index, chunk.uncompressed_offset))
    defaults = Defaults(boot.chunk_size, Compressor.LZ4_BLOCK, Digester.BLAKE3)
    target.write_bytes(b"".join(write_bootstrap(tree, blobs, defaults)))


def test_the_255th_blob_and_unlike_layers_are_refused(
    lower: tuple[Path, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many, boot, blobs = tmp_path / "many.boot", tmp_path / "boot", tmp_path / "out"
    _of_254_blobs(lower[0], many)
    old = _tree(tmp_path / "old", {"a": _SHARED[: 1 << 16]})
    new = _tree(tmp_path / "new", {"n": b"new"})
    options = ("--parent-bootstrap", str(many))
    assert len(_create(boot, blobs, old, *options)) == 254
    boot.unlink()
    assert main([
        "create", "--chunk-size", "0x10000", "-B", str(boot), "-D", str(blobs), *options, str(new)
    ]) == 1  # fmt: skip
    assert "255 blobs; a bootstrap holds at most 254" in capsys.readouterr().err
    assert list(blobs.iterdir()) == []
    layers = []
    for size in ("0x1000", "0x10000"):
        layers.append(str(tmp_path / size))
        assert main([
            "create", "--blob-inline-meta", "--chunk-size", size, "-b", layers[-1], str(new)
        ]) == 0  # fmt: skip
    assert main(["merge", "-B", str(boot), *layers]) == 2
    assert "build all layers with the same --chunk-size" in capsys.readouterr().err
    assert not boot.exists()
