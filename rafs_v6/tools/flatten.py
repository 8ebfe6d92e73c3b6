"""A bootstrap for a kernel that knows no device table (before Linux 5.16): one device holds it and
all blobs, and every file says where on that device its data lie.

Guarantees: nothing but addresses changes, so the tree is the same.  What was signed or measured by
dm-verity is the bootstrap before this.  Source: docs/format.md 1.2, 1.4, 1.7; fs/erofs/data.c.
"""

from __future__ import annotations

from rafs_v6.errors import ImageError
from rafs_v6.format.erofs import (
    CHUNK_INDEX_SIZE,
    DEVICE_SLOTS_OFFSET,
    EROFS_BLOCK,
    EROFS_FEATURE_INCOMPAT_DEVICE_TABLE,
    EROFS_SUPER_OFFSET,
    FLAT_INDEX,
    DeviceSlot,
    SuperBlock,
    round_up,
)
from rafs_v6.reader.bootstrap import Bootstrap
from rafs_v6.values import replace

_BLOCKS = 1 << 32  # a block's number has 32 bits, and the highest means a hole


def flatten(boot: Bootstrap) -> tuple[bytearray, list[int]]:
    """The changed bytes, and the byte of the device on which each blob begins.

    Raises ``ImageError`` for an image that is larger than block numbers reach.
    """
    data, bs = bytearray(boot.data), boot.block_size
    starts, end, blocks = [], round_up(len(data), max(bs, EROFS_BLOCK)), 0
    for info in boot.blobs:
        slot = DeviceSlot.unpack(boot.data, DEVICE_SLOTS_OFFSET + DeviceSlot.SIZE * info.index)
        starts.append(end)
        blocks += slot.blocks
        end = round_up(end + slot.blocks * bs, max(bs, EROFS_BLOCK))
    if end // bs >= _BLOCKS:
        raise ImageError(f"{end} bytes in blocks of {bs}: more than one device can have")
    super_block = SuperBlock.unpack(boot.data, EROFS_SUPER_OFFSET)
    data[EROFS_SUPER_OFFSET : EROFS_SUPER_OFFSET + SuperBlock.SIZE] = _flat(super_block, blocks)
    seen = set()
    for _, inode in boot.walk():
        if inode.is_reg and inode.nid not in seen:
            seen.add(inode.nid)
            at = round_up(inode.tail, CHUNK_INDEX_SIZE)
            for ref in boot.chunks(inode):
                FLAT_INDEX.pack_into(data, at, 0, 0, (starts[ref.blob_index] + ref.flat_off) // bs)
                at += CHUNK_INDEX_SIZE
    return data, starts


def _flat(super_block: SuperBlock, blocks: int) -> bytes:
    """``blocks``: of all blobs, which statfs(2) goes on to count."""
    return replace(
        super_block,
        feature_incompat=super_block.feature_incompat & ~EROFS_FEATURE_INCOMPAT_DEVICE_TABLE,
        extra_devices=0,
        blocks=super_block.blocks + blocks,
    ).pack()
