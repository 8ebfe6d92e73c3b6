"""``export --block``: the kernel mounts it, veritysetup believes it, and neither when damaged."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from build_kit import differences, golden_tree, manifest, mounted

from rafs_v6.cli import main


@pytest.mark.parametrize("name", ["layers-zstd", "layers-zran", "tarfs", "one-encrypted"])
def test_golden(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    image = golden / "images" / name
    disk = tmp_path / "image.disk"
    assert main([
        "export", "--block", "--verity", "-B", str(image / "image.boot"),
        "--localfs-dir", str(image / "blobs"), "--output", str(disk),
    ]) == 0  # fmt: skip
    with mounted(disk, [], tmp_path / "mnt") as at:
        want = golden_tree(image / "expected.jsonl")
        assert differences(manifest(golden, at), want) == []
    line = capsys.readouterr().out
    # As nydus-snapshotter scans it
    found = re.fullmatch(
        r'dm-verity options: --no-superblock --format=1 -s "" --hash=sha256'
        r" --data-block-size=(\d+) --hash-block-size=4096 --data-blocks (\d+)"
        r" --hash-offset (\d+) ([0-9a-f]{64})\n",
        line,
    )
    assert found, line
    if shutil.which("veritysetup") is None:
        pytest.skip("NO veritysetup: the hash tree is not verified by others")
    options = shlex.split(line.partition(": ")[2].replace('""', "-"))
    verify = ["veritysetup", "verify", *options[:-1], disk, disk, options[-1]]
    assert subprocess.run(verify, check=False, capture_output=True).returncode == 0
    data = bytearray(disk.read_bytes())
    data[int(found[1]) * int(found[2]) - 5000] ^= 1
    disk.write_bytes(data)
    assert subprocess.run(verify, check=False, capture_output=True).returncode != 0


def test_damage_leaves_no_disk(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = golden / "images" / "one-lz4"
    blobs, out = tmp_path / "blobs", tmp_path / "out"
    shutil.copytree(image / "blobs", blobs)
    out.mkdir()
    (blob,) = blobs.iterdir()
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[100_000] ^= 1
    blob.write_bytes(data)
    command = ["export", str(image / "image.boot"), "-D", str(blobs), "-O", str(out / "disk")]
    assert main([*command, "--block"]) == 1
    assert blob.name in capsys.readouterr().err
    assert list(out.iterdir()) == []
    assert main(command) == 2
    assert "--block" in capsys.readouterr().err
