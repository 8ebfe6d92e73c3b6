"""``compact`` and ``optimize``: the same tree from other blobs, nothing wrong with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from build_kit import image_tree

import rafs_v6
from rafs_v6.cli import main
from rafs_v6.format.erofs import BlobFeatures
from rafs_v6.reader.blobs import directory_blobs
from rafs_v6.tools.check.image import check_image


@pytest.fixture
def copy(golden: Path, tmp_path: Path) -> Any:
    """A golden image that may be changed: bootstrap, blobs."""

    def make(name: str) -> tuple[Path, Path]:
        blobs = tmp_path / "blobs"
        shutil.copytree(golden / "images" / name / "blobs", blobs)
        blobs.chmod(0o755)
        return golden / "images" / name / "image.boot", blobs

    return make


def _same(before: Path, after: Path, blobs: Path) -> rafs_v6.Bootstrap:
    a, b = rafs_v6.open(before, blobs=blobs), rafs_v6.open(after, blobs=blobs)
    assert image_tree(a) == image_tree(b)
    assert check_image(after, directory_blobs(blobs)).faults == []
    return b.bootstrap


@pytest.mark.parametrize(
    ("name", "options", "left"),
    [
        ("layers-zstd", ["--min-used-ratio", "100"], 3),
        ("layers-zstd", ["--layers-to-compact", "2"], 1),
        ("layers-zstd", ["--layers-to-compact", "2", "--max-compact-size", "8000000"], 2),
        ("layers-zstd", [], 3),
        ("layers-zran", ["--layers-to-compact", "1", "--min-used-ratio", "101"], 3),
        ("one-batch", ["--min-used-ratio", "101"], 1),
        ("chunk-dict", ["--layers-to-compact", "1"], 1),
    ],
)  # fmt: skip
def test_compact(copy: Any, tmp_path: Path, name: str, options: list[str], left: int) -> None:
    boot, blobs = copy(name)
    out, report = tmp_path / "out", tmp_path / "json"
    old = {p.name for p in blobs.iterdir()}
    assert main([
        "compact", "-B", str(boot), "-D", str(blobs), "-O", str(out), "-J", str(report), *options,
    ]) == 0  # fmt: skip
    document = json.loads(report.read_text())
    assert len(document["blobs"]) == left
    new = {p.name for p in blobs.iterdir()} - old
    assert new == set(document["new_blobs"])
    for unused in document["unused_blobs"]:
        (blobs / unused).rename(tmp_path / unused)  # nothing of the new image may need it
    assert check_image(out, directory_blobs(blobs)).faults == []
    for unused in document["unused_blobs"]:
        (tmp_path / unused).rename(blobs / unused)
    _same(boot, out, blobs)
    if new and name == "layers-zstd":
        # What layer 2 shadows and layer 1 repeats is gone; stored bytes were kept as they are.
        assert sum((blobs / b).stat().st_size for b in document["blobs"]) < sum(
            (blobs / b).stat().st_size for b in old
        )


PYTHON = ("/usr/bin/python3.11", "/usr/lib/python3.11/encodings")


@pytest.mark.parametrize(
    ("name", "paths", "chunks"),
    [
        ("layers-zstd", PYTHON, 7),
        ("one-batch", PYTHON, 7),
        ("layers-zran", PYTHON, 7),
        ("one-prefetch", PYTHON, 7),
        ("one-encrypted", ("/usr/bin/ping", "/app"), 2),
    ],
)
def test_optimize(
    copy: Any, tmp_path: Path, name: str, paths: tuple[str, str], chunks: int
) -> None:
    boot, blobs = copy(name)
    listed, out, report = tmp_path / "list", tmp_path / "out", tmp_path / "json"
    listed.write_text("\n".join([*paths, "/nowhere", ""]))
    assert main([
        "optimize", "-B", str(boot), "-D", str(blobs), "-p", str(listed), "-O", str(out),
        "-J", str(report),
    ]) == 0  # fmt: skip
    new = _same(boot, out, blobs)
    document = json.loads(report.read_text())
    assert document["blobs"][-1] == document["prefetch_blob"] == new.blobs[-1].blob_id
    assert new.blobs[-1].features & BlobFeatures.IS_SEPARATED_WITH_PREFETCH_FILES
    assert new.blobs[-1].is_encrypted == (name == "one-encrypted")
    assert [new.lookup(p).nid for p in paths] == list(new.prefetch_nids)
    last = len(new.blobs) - 1
    wanted = [inode for p, inode in new.walk() if p.decode().startswith(tuple(paths))]
    found = [ref for inode in wanted if inode.is_reg for ref in new.chunks(inode)]
    assert {ref.blob_index for ref in found} == {last}
    assert len({ref.chunk_index for ref in found}) == new.blobs[last].chunk_count
    first = new.chunks(new.lookup(paths[0]))
    assert [ref.chunk_index for ref in first] == list(range(chunks))


def test_what_cannot_be_rewritten_is_said(
    copy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boot, blobs = copy("one-lz4")
    (tmp_path / "list").write_text("/nowhere\n")
    out = tmp_path / "out"
    words = ["optimize", "-B", str(boot), "-D", str(blobs), "-p", str(tmp_path / "list")]
    assert main([*words, "-O", str(out)]) == 1
    assert "none of the paths" in capsys.readouterr().err
    assert not out.exists()
    assert len(list(blobs.iterdir())) == 1


def test_damage_leaves_nothing(
    copy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boot, blobs = copy("one-lz4")
    (blob,) = blobs.iterdir()
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[1_000_000] ^= 1
    blob.write_bytes(data)
    out = tmp_path / "out"
    words = ["compact", str(boot), "-D", str(blobs), "-O", str(out), "--min-used-ratio", "101"]
    assert main(words) == 1
    assert blob.name in capsys.readouterr().err
    assert not out.exists()
    assert list(blobs.iterdir()) == [blob]
