"""Two images that share files share what was fetched, though their blobs differ."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from built import build_image
from rig import Rig

SIZE = 150_000
SHARED, OWN = 12, 4


def _image(
    base: Path, seed: int, size: int = SIZE, *options: str
) -> tuple[Path, Path, dict[str, bytes]]:
    out = base / f"image{seed}"
    out.mkdir()
    rng = random.Random(0)
    contents = {f"shared{i}": rng.randbytes(size) for i in range(SHARED)}
    rng = random.Random(seed)
    contents |= {f"a{i}": rng.randbytes(size) for i in range(OWN)}
    options = ("--chunk-size", "0x10000", *options)
    build_image(base / f"tree{seed}", contents, "-B", out / "boot", "-D", out, *options)
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


def _closed(rig: Rig, image: tuple[Path, Path, dict[str, bytes]]) -> Path:
    """Read and unmount an image; its data file, which nobody has open then."""
    mount = rig.mount(image[0], image[1], "m1")
    _check(mount, image[2])
    rig.run("umount", mount)
    (data,) = (rig.root / "cache").glob("*.blob.data")
    return data


def _reused_and_fetched(rig: Rig, image: tuple[Path, Path, dict[str, bytes]]) -> tuple[int, int]:
    """By an image whose files are all read, and have the right bytes."""
    mount = rig.mount(image[0], image[1], "m2")
    _check(mount, image[2])
    blobs = rig.status()["blobs"]
    assert all(blob["errors"] == 0 for blob in blobs)
    counts = sum(b["reused"] for b in blobs), sum(b["fetched"] for b in blobs)
    rig.run("umount", mount)
    return counts


def test_chunks_of_an_image_that_is_not_mounted_are_copied(rig: Rig, tmp_path: Path) -> None:
    """Over a restart of the daemon, and no more once that image's files are deleted."""
    first, second, third = (_image(tmp_path, seed) for seed in (1, 2, 3))
    data = _closed(rig, first)
    rig.run("stop")
    rig.wait_for_end()
    reused, fetched = _reused_and_fetched(rig, second)
    assert reused >= SHARED * SIZE
    assert fetched <= (OWN * SIZE) * 1.01  # its own bytes and none of the shared
    rig.run("gc", "--to", "0")
    assert not data.exists()
    assert _reused_and_fetched(rig, third)[0] == 0


@pytest.mark.parametrize("harm", ["rotten data", "lost record", "lost data", "damaged index"])
def test_what_is_wrong_on_disk_is_fetched_instead(rig: Rig, tmp_path: Path, harm: str) -> None:
    first, second = _image(tmp_path, 1), _image(tmp_path, 2)
    data = _closed(rig, first)
    index = rig.root / "cache" / "chunks.index"
    if harm == "rotten data":
        content = bytearray(data.read_bytes())
        content[::4096] = bytes(255 - b for b in content[::4096])
        data.write_bytes(content)
    elif harm == "lost record":
        data.with_name(f"{data.name}.chunk_map").unlink()
    elif harm == "lost data":
        data.unlink()
    else:
        rig.run("stop")
        rig.wait_for_end()
        size = index.stat().st_size
        index.write_bytes(b"\xa5" * size)
    assert _reused_and_fetched(rig, second)[0] == 0
    if harm == "damaged index":  # it is made anew, of what was read since
        third = _image(tmp_path, 3)
        assert _reused_and_fetched(rig, third)[0] >= SHARED * SIZE


@pytest.mark.parametrize("giver", ["mounted", "not mounted"])
def test_units_of_several_chunks_are_copied_when_all_of_them_are_there(
    rig: Rig, tmp_path: Path, giver: str
) -> None:
    """Batches of seven files; the first has files of both kinds, so it is fetched."""
    first, second = (_image(tmp_path, i, 9000, "--batch-size", "0x10000") for i in (1, 2))
    mount = rig.mount(first[0], first[1], "m1")
    _check(mount, first[2])
    before = rig.fetched()
    if giver == "not mounted":
        rig.run("umount", mount)
        before = 0
    reused, fetched = _reused_and_fetched(rig, second)
    assert reused >= 7 * 9000
    assert fetched - before <= 7 * 9000 * 1.05
