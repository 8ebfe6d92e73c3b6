"""A flattened bootstrap: addresses instead of a device table, and the same tree."""

from __future__ import annotations

from pathlib import Path

import pytest
from build_kit import differences, golden_tree, manifest, mounted

from rafs_v6 import Bootstrap, ImageError
from rafs_v6.cli import main
from rafs_v6.format.erofs import DEVICE_SLOTS_OFFSET, EROFS_SUPER_OFFSET, DeviceSlot, SuperBlock
from rafs_v6.tools import flatten as flatten_module
from rafs_v6.tools.flatten import flatten


@pytest.mark.parametrize("name", ["layers-zstd", "chunk-dict", "tarfs"])
def test_golden(golden: Path, tmp_path: Path, name: str) -> None:
    image = golden / "images" / name
    disk, flat = tmp_path / "image.disk", tmp_path / "flat.disk"
    assert main([
        "export", "--block", "-B", str(image / "image.boot"),
        "--localfs-dir", str(image / "blobs"), "--output", str(disk),
    ]) == 0  # fmt: skip
    bootstrap = Bootstrap.from_file(image / "image.boot")
    data, starts = flatten(bootstrap)
    super_block = SuperBlock.unpack(data, EROFS_SUPER_OFFSET)
    assert super_block.feature_incompat == 0x4
    assert super_block.extra_devices == 0
    with disk.open("rb") as exported, flat.open("wb") as out:
        out.write(data)
        for number, start in enumerate(starts):
            at = DEVICE_SLOTS_OFFSET + DeviceSlot.SIZE * number
            slot = DeviceSlot.unpack(bootstrap.data, at)
            assert start % 4096 == 0
            exported.seek(slot.mapped_blkaddr * bootstrap.block_size)
            out.seek(start)
            out.write(exported.read(slot.blocks * bootstrap.block_size))
    bootstrap.close()
    with mounted(flat, [], tmp_path / "mnt") as at_flat:
        want = golden_tree(image / "expected.jsonl")
        assert differences(manifest(golden, at_flat), want) == []


def test_more_than_block_numbers_reach(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bootstrap = Bootstrap.from_file(golden / "images" / "one-lz4" / "image.boot")
    monkeypatch.setattr(flatten_module, "_BLOCKS", 8)
    with pytest.raises(ImageError, match="more than one device can have"):
        flatten(bootstrap)
    bootstrap.close()
