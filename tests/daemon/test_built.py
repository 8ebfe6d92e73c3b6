"""Images that we build and that refer to a tar, served by the daemon: the tar is the blob."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

from rig import Rig
from trees import assert_tree

from rafs_v6.build.cli import main


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
