"""An image as one block device: the bootstrap, then every blob flat where its slot says (1.4)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from rafs_v6.errors import ImageError
from rafs_v6.format.erofs import DEVICE_SLOTS_OFFSET, DeviceSlot
from rafs_v6.reader.blobs import Blobs
from rafs_v6.reader.image import Image
from rafs_v6.reader.stream import Batch, UnitReader, WantedUnit, grouped
from rafs_v6.tools.verity import Verity, append_verity


def export_block(
    image: Image, blobs: Blobs, fd: int, *, verity: bool = False, threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Verity | None:  # fmt: skip
    """Write to ``fd``, an empty regular file, what the kernel mounts without ``device=``.

    What no chunk fills stays a hole.  Every chunk that has a digest is verified.
    """
    boot = image.bootstrap
    places = _places(image)
    size = max((start + flat for start, flat in places), default=len(boot.data))
    os.ftruncate(fd, size)
    os.pwrite(fd, boot.data, 0)
    done, total = 0, sum(flat for _, flat in places)
    for batch in UnitReader(blobs.read_at, threads).batches(grouped(_units(image))):
        batch.require()
        for i in range(len(batch.units)):
            done += _write_unit(fd, batch, i, places[batch.units[i][0].info.index][0])
        if progress is not None:
            progress(min(done, total), total)
    return append_verity(fd, size, boot.block_size) if verity else None


def _places(image: Image) -> list[tuple[int, int]]:
    """(byte of the device, flat bytes) of each blob; what overlaps would be wrong data."""
    boot = image.bootstrap
    end = len(boot.data)
    out = []
    for info in boot.blobs:
        slot = DeviceSlot.unpack(boot.data, DEVICE_SLOTS_OFFSET + DeviceSlot.SIZE * info.index)
        start = slot.mapped_blkaddr * boot.block_size
        if start < end:
            raise ImageError(
                f"device slot {info.index} lies at {start:#x}, inside what ends at {end:#x};"
                " build or merge the image again"
            )
        end = start + slot.blocks * boot.block_size
        out.append((start, end - start))
    return out


def _units(image: Image) -> Iterator[WantedUnit]:
    for info in image.bootstrap.blobs:
        chunks = image.chunk_map(info.index)
        yield from ((chunks, unit) for unit in range(chunks.nunits))


def _write_unit(fd: int, batch: Batch, i: int, start: int) -> int:
    chunks, number = batch.units[i]
    unit, data = chunks.unit(number), batch.uncompressed(i)
    for k in range(unit.first, unit.first + unit.count):
        chunk = chunks.blob.chunks[k]
        os.pwrite(fd, data[chunk.unit_off : chunk.unit_off + chunk.usize], start + chunk.uoff)
    return unit.ulen
