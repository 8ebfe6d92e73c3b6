"""Images that we build, served by the daemon: those that refer to a tar, and deduplicated ones."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

from rig import Rig
from trees import assert_tree

from rafs_v6.cli import main


def test_zran_and_tarfs_are_served(rig: Rig, golden: Path, tmp_path: Path) -> None:
    layer = next((golden / "images" / "layers-zran" / "blobs").glob("bde919*"))
    tar = tmp_path / "layer.tar"
    with gzip.open(layer) as plain, tar.open("wb") as f:
        shutil.copyfileobj(plain, f)
    for kind, source in {"targz-ref": layer, "tar-tarfs": tar}.items():
        out = tmp_path / kind
        out.mkdir()
        boot, report = out / "image.boot", out / "report"
        assert main([
            "create", "-t", kind, "-B", str(boot), "-D", str(out), "-J", str(report), str(source)
        ]) == 0  # fmt: skip
        (blob_id,) = json.loads(report.read_text())["blobs"]
        shutil.copyfile(source, out / blob_id)
        assert_tree(
            rig.mount(boot, out, f"{kind}.mnt"), golden / "images" / "tarfs" / "expected.jsonl"
        )
    assert all(blob["errors"] == 0 for blob in rig.status()["blobs"])


def test_batched_and_encrypted_over_a_dictionary_is_served(
    rig: Rig, golden: Path, tmp_path: Path
) -> None:
    tars = golden / "images" / "layers-zran" / "blobs"
    out, low, boot = tmp_path / "out", tmp_path / "low.boot", tmp_path / "up.boot"
    out.mkdir()
    create = ["create", "-t", "targz-rafs", "-D", str(out), "--encrypt", "--batch-size"]
    layers = [str(next(tars.glob(start))) for start in ("2ac888*", "bde919*")]
    assert main([*create, "0x10000", "-B", str(low), layers[0]]) == 0
    assert main(
        [*create, "0x100000", "-B", str(boot), "--chunk-dict", str(low), layers[1]]
    ) == 0  # fmt: skip
    assert_tree(rig.mount(boot, out, "mnt"), golden / "images" / "chunk-dict" / "expected.jsonl")
    blobs = rig.status()["blobs"]
    assert len(blobs) == 2
    assert all(blob["errors"] == 0 for blob in blobs)
