"""The original nydus-image, when it is here, on what we build, and on our dictionaries."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from rafs_v6.cli import main

# Version 2.2 knows neither batches nor encryption, of the golden images either.
_OPTIONS = [
    "--compressor none --digester sha256 --chunk-size 0x1000",
    "--compressor lz4_block --chunk-size 0x1000000 --features blob-toc",
    "--compressor zstd --chunk-size 0x10000 --repeatable",
]


def _data(tar: Path) -> dict[str, str]:
    out = {}
    with tarfile.open(tar) as f:
        for info in f:
            data = f.extractfile(info) if info.isreg() else None
            if data is not None:
                name = info.name.removeprefix("./").strip("/")
                out[name] = hashlib.sha256(data.read()).hexdigest()
    return out


@pytest.mark.parametrize("options", _OPTIONS)
def test_it_finds_our_image_valid_and_unpacks_the_same(
    original: Path, layers: list[Path], tmp_path: Path, options: str
) -> None:
    boot, blob, ours, theirs = (tmp_path / n for n in ("boot", "blob", "ours.tar", "theirs.tar"))
    assert main([
        "create", "-t", "targz-rafs", "-B", str(boot), "-b", str(blob), *options.split(),
        str(layers[1]),
    ]) == 0  # fmt: skip
    said = subprocess.run(
        [original, "check", "-B", boot], check=True, capture_output=True, text=True
    )
    assert "RAFS filesystem metadata is valid" in said.stdout + said.stderr
    assert main(["unpack", str(boot), "-b", str(blob), "--output", str(ours)]) == 0
    subprocess.run(
        [original, "unpack", "-B", boot, "-b", blob, "--output", theirs],
        check=True, capture_output=True,
    )  # fmt: skip
    assert len(_data(ours)) > 600
    assert _data(theirs) == _data(ours)


def test_it_builds_on_our_dictionary_as_we_do(
    original: Path, layers: list[Path], tmp_path: Path
) -> None:
    tree, blobs = tmp_path / "tree", tmp_path / "blobs"
    tree.mkdir()
    blobs.mkdir()
    subprocess.run(["tar", "-xpzf", layers[1], "-C", tree], check=True)
    low, made, boot = (tmp_path / n for n in ("low.boot", "dict.boot", "boot"))
    assert main(
        ["create", "-t", "targz-rafs", "-B", str(low), "-D", str(blobs), str(layers[1])]
    ) == 0  # fmt: skip
    assert main(["chunkdict", "generate", "-B", str(made), str(low)]) == 0
    (tree / "mine").write_bytes(b"mine")
    words = ["create", "-D", blobs, "--chunk-dict", f"bootstrap={made}"]
    found = []
    for program, report in ((original, "theirs.json"), (None, "ours.json")):
        argv = [*map(str, words), "-B", str(boot), "-J", str(tmp_path / report), str(tree)]
        if program is None:
            assert main(argv) == 0
        else:
            subprocess.run([program, *argv], check=True, capture_output=True)
        found.append(json.loads((tmp_path / report).read_text())["blobs"])
    # The own blob's id may differ by the compressor's version, not its place.
    assert len(found[0]) == len(found[1]) == 2
    known = next(p.name for p in blobs.iterdir() if p.stat().st_size > 1 << 20)
    assert found[0].index(known) == found[1].index(known)


@pytest.mark.parametrize("options", _OPTIONS)
def test_we_find_its_image_valid(
    original: Path, layers: list[Path], tmp_path: Path, options: str
) -> None:
    boot, blobs, out = tmp_path / "boot", tmp_path / "blobs", tmp_path / "out.tar"
    blobs.mkdir()
    subprocess.run(
        [original, "create", "-t", "targz-rafs", "-v", "6", "-B", boot, "-D", blobs,
         *options.split(), layers[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    assert main(["check", str(boot), "--blob-dir", str(blobs)]) == 0
    assert main(["unpack", str(boot), "--blob-dir", str(blobs), "--output", str(out)]) == 0
    with tarfile.open(layers[1]) as f:
        files = {i.name.removeprefix("./") for i in f if i.isreg()}
    assert set(_data(out)) == files
