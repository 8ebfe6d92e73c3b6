"""Two images that share files share what was fetched, though their blobs differ."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from rig import Rig

CREATE = "import sys; from rafs_v6.build.cli import main; sys.exit(main())"
SIZE = 150_000
SHARED, OWN = 12, 4


def _image(base: Path, seed: int) -> tuple[Path, Path, dict[str, bytes]]:
    tree, out = base / f"tree{seed}", base / f"image{seed}"
    tree.mkdir()
    out.mkdir()
    rng = random.Random(0)
    contents = {f"shared{i}": rng.randbytes(SIZE) for i in range(SHARED)}
    rng = random.Random(seed)
    contents |= {f"a{i}": rng.randbytes(SIZE) for i in range(OWN)}
    for name, data in contents.items():
        (tree / name).write_bytes(data)
    subprocess.run(
        [sys.executable, "-c", CREATE, "create", "-B", out / "boot", "-D", out,
         "--chunk-size", "0x10000", tree],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return out / "boot", out, contents


def _check(mount: Path, contents: dict[str, bytes]) -> None:
    for name, data in sorted(contents.items()):
        assert (mount / name).read_bytes() == data


def test_equal_chunks_are_copied_and_not_fetched(rig: Rig, tmp_path: Path) -> None:
    first, second = _image(tmp_path, 1), _image(tmp_path, 2)
    mount = rig.mount(first[0], first[1], "m1")
    _check(mount, first[2])
    before = rig.fetched()
    other = rig.mount(second[0], second[1], "m2")
    _check(other, second[2])
    blobs = rig.status()["blobs"]
    reused = sum(blob["reused"] for blob in blobs)
    assert reused >= SHARED * SIZE
    assert rig.fetched() - before < (OWN + 1) * SIZE
    assert all(blob["errors"] == 0 for blob in blobs)
    # the giver goes, and what was copied stays
    rig.run("umount", mount)
    _check(other, second[2])
    rig.run("stop")
    other = rig.mount(second[0], second[1], "m2")
    _check(other, second[2])
    assert rig.fetched() == 0


def test_a_copy_that_rotted_on_disk_is_fetched_instead(rig: Rig, tmp_path: Path) -> None:
    first, second = _image(tmp_path, 1), _image(tmp_path, 2)
    mount = rig.mount(first[0], first[1], "m1")
    _check(mount, first[2])
    (data,) = (rig.root / "cache").glob("*.blob.data")
    with data.open("r+b") as f:  # what every chunk of it says is wrong from now on
        while block := f.read(65536):
            f.seek(-len(block), 1)
            f.write(bytes(255 - b for b in block[:1]) + block[1:])
    other = rig.mount(second[0], second[1], "m2")
    _check(other, second[2])
    assert sum(blob["reused"] for blob in rig.status()["blobs"]) < SHARED * SIZE // 2
