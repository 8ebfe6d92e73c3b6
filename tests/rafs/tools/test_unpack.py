"""``unpack`` of every kind of golden image, from a directory, a registry, damaged ones."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from build_kit import golden_tree
from rangeserver import RangeServer

from nydus_fscache.cli.nydus_image import main

_TYPES = {"reg": "0", "lnk": "2", "chr": "3", "blk": "4", "dir": "5", "fifo": "6"}


def _shown(path: Path) -> dict[str, tuple[object, ...]]:
    """What another implementation of tar makes of it: type, mode, owner, time, data or target."""
    out: dict[str, tuple[object, ...]] = {}
    with tarfile.open(path) as tar:
        for info in tar:
            name = "/" + info.name.removeprefix(".").lstrip("/")
            target = "/" + info.linkname if info.islnk() else ""
            data = tar.extractfile(info) if info.isreg() else None
            own = (
                info.type.decode(), f"{info.mode:04o}", info.uid, info.gid, info.linkname,
                hashlib.sha256(data.read()).hexdigest() if data else "",
            )  # fmt: skip
            out[name] = out[target] if target else own
    return out


@pytest.mark.parametrize(
    "name",
    [
        "chunk-dict", "estargz-rafs", "estargz-ref", "layers-zran", "layers-zstd", "one-batch",
        "one-encrypted", "one-lz4", "tarfs",
    ],
)  # fmt: skip
def test_golden(golden: Path, tmp_path: Path, name: str) -> None:
    image = golden / "images" / name
    tar = tmp_path / "out.tar"
    boot, blobs = str(image / "image.boot"), str(image / "blobs")
    assert main(["unpack", boot, "-D", blobs, "--output", str(tar)]) == 0
    want = {
        path: (
            _TYPES[str(e["type"])], e["mode"], e["uid"], e["gid"], e.get("target", ""),
            e.get("sha256", ""),
        )
        for path, e in golden_tree(image / "expected.jsonl").items() if e["type"] != "sock"
    }  # fmt: skip
    assert _shown(tar) == want
    subprocess.run(["tar", "-tf", tar], check=True, stdout=subprocess.DEVNULL)


def test_from_a_registry(golden: Path, tmp_path: Path) -> None:
    image = golden / "images" / "layers-zstd"
    boot, tar, again = str(image / "image.boot"), tmp_path / "a.tar", tmp_path / "b.tar"
    with RangeServer(image / "blobs") as server:
        options = {"scheme": "http", "host": f"127.0.0.1:{server.port}", "repo": "a/b"}
        where = ["--backend-type", "registry", "--backend-config", json.dumps(options)]
        assert main(["unpack", boot, *where, "--output", str(tar)]) == 0
        requests = len(server.seen)
        assert main(["check", boot, *where]) == 0
    assert main(["unpack", boot, "-D", str(image / "blobs"), "--output", str(again)]) == 0
    assert tar.read_bytes() == again.read_bytes()
    assert requests < 60  # runs of chunks, not chunk by chunk: there are 1038


@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
@pytest.mark.parametrize("name", ["one-lz4", "one-batch", "layers-zran", "one-encrypted"])
def test_damage_is_named_and_nothing_is_left(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, harm: str
) -> None:
    image = golden / "images" / name
    blobs = tmp_path / "blobs"
    shutil.copytree(image / "blobs", blobs)
    largest = max(blobs.iterdir(), key=lambda p: p.stat().st_size)
    largest.chmod(0o644)
    data = bytearray(largest.read_bytes())
    if harm == "gone":
        largest.unlink()
    else:
        data[len(data) // 2] ^= 0x10
        largest.write_bytes(data if harm == "flip" else data[: len(data) // 2])
    out = tmp_path / "out"
    out.mkdir()
    boot = str(image / "image.boot")
    assert main(["unpack", boot, "-D", str(blobs), "--output", str(out / "x.tar")]) == 1
    assert largest.name in capsys.readouterr().err
    assert list(out.iterdir()) == []
