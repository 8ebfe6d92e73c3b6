"""Everything that is wrong with an image: bootstrap, blobs, chunks; all of it, not the first.

Faults have stable dotted names; the first word says which part is at fault.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rafs_v6.errors import ImageError
from rafs_v6.faults import Checks, Fault
from rafs_v6.format.erofs import (
    CHUNK_RECORD_SIZE,
    DEVICE_SLOTS_OFFSET,
    EROFS_SUPER_OFFSET,
    RAFS_EXT_SUPER_OFFSET,
    DeviceSlot,
    ExtSuperBlock,
)
from rafs_v6.reader.blobs import Blobs
from rafs_v6.reader.bootstrap import Bootstrap
from rafs_v6.reader.locate import adopt_own_blob, locate_bootstrap
from rafs_v6.tools.blobs import is_dictionary
from rafs_v6.tools.check.blob import BlobCheck
from rafs_v6.tools.check.data import CheckedData, check_data
from rafs_v6.validate import validate_tree
from rafs_v6.values import dataclass, field

MAX_FAULTS = 1000
_NO_ID = 0xFFFFFFFF  # (uid_t)-1
Progress = Callable[[int, int], None]

_BOOTSTRAP = "the bootstrap is damaged: fetch it again, or build or merge the image again"
_BLOB = "the blob is damaged: fetch it again from where it was pushed, or build its layer again"
_UNREAD = "the backend did not give it: see what it said, and check again when it does"
_HINTS = {
    "blob": "put the right blob there, whole: fetch it again, or pull the image's layer again",
    "blob-meta": _BLOB,
    "toc": _BLOB,
    "tar-header": _BLOB,
    "chunk-digests": _BLOB,
    "chunk": _BLOB,
    "blob.unread": _UNREAD,
    "chunk.unread": _UNREAD,
}


def hint(fault: Fault) -> str:
    """What to do next about a fault."""
    part = fault.name.split(".", maxsplit=1)[0]
    return _HINTS.get(fault.name) or _HINTS.get(part, _BOOTSTRAP)


@dataclass(slots=True)
class CheckReport:
    """``faults``: at most ``MAX_FAULTS``, in the order of the image; ``more``: how many others.

    ``data``: what was decoded; None when no blobs were given.
    """

    faults: list[Fault] = field(default_factory=list)
    more: int = 0
    bootstrap: Bootstrap | None = None
    data: CheckedData | None = None

    def add(self, fault: Fault) -> None:
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(fault)
        else:
            self.more += 1


def check_image(
    path: Path, blobs: Blobs | None, *, threads: int = 0, progress: Progress | None = None
) -> CheckReport:
    """Check the bootstrap at ``path`` (or the blob that it is inside of) and, with ``blobs``,
    all that it refers to.  ``OSError`` only when ``path`` cannot be read.

    Of a dictionary of chunks the tree is passed over.

    ``progress``: called with the decoded and all bytes now and then.
    """
    report = CheckReport()
    check = Checks(report.add)
    try:
        bootstrap, _ = locate_bootstrap(path, check)
        report.bootstrap = bootstrap
    except ImageError as error:
        check.fail("bootstrap", str(path), str(error))
        return report
    if not is_dictionary(bootstrap):
        try:
            nids = validate_tree(bootstrap, check)
        except ImageError as error:
            check.fail("bootstrap.tree", str(path), str(error))
        else:
            _check_counts(bootstrap, nids, check)
    if blobs is None:
        return report
    blobs = adopt_own_blob(path, bootstrap, blobs)
    records: dict[int, list[int]] = {}
    for at, record in bootstrap.chunk_records():
        records.setdefault(record.blob_index, []).append(at)
    maps = []
    for info in bootstrap.blobs:
        chunks = BlobCheck(bootstrap, info, blobs, check, records.get(info.index, ())).run()
        if chunks is not None:
            maps.append(chunks)
    report.data = check_data(maps, blobs, check, threads=threads, progress=progress)
    return report


def _check_counts(bootstrap: Bootstrap, nids: set[int], check: Checks) -> None:
    """What no reader needs, but every honest writer gets right."""
    _check_tables(bootstrap, check)
    _check_devices(bootstrap, check)
    ext = bootstrap.tables.ext
    for i, nid in enumerate(bootstrap.prefetch_nids):
        check(
            nid in nids, "prefetch-table.entry", ext.prefetch_table_offset + 4 * i,
            f"prefetch table: entry {i} is nid {nid}, which is no inode of the tree",
        )  # fmt: skip
    names: dict[int, int] = {}
    paths = 0
    try:
        for _, inode in bootstrap.walk():
            paths += 1
            names[inode.nid] = names.get(inode.nid, 0) + 1
    except ImageError:
        return  # a directory that cannot be read was reported already, and hides others
    inos = bootstrap.tables.super_block.inos
    check(
        inos == paths, "superblock.inos", EROFS_SUPER_OFFSET + 16,
        f"inos is {inos}, the tree has {paths} paths",
    )  # fmt: skip
    for nid, count in names.items():
        inode = bootstrap.inode(nid)
        check(
            not inode.is_reg or inode.nlink == count, "inode.nlink", inode.offset + 44,
            f"inode {nid}: {inode.nlink} links, the tree has {count} names of it",
        )  # fmt: skip
        for what, owner in (("owner", inode.uid), ("group", inode.gid)):
            check(
                owner != _NO_ID, f"inode.{what}", inode.offset + 24,
                f"inode {nid}: {what} {owner}, which Linux does not have: a mount shows 65534",
            )  # fmt: skip


def _check_tables(bootstrap: Bootstrap, check: Checks) -> None:
    at = RAFS_EXT_SUPER_OFFSET
    ext = bootstrap.tables.ext
    check(
        not ext.padding and not any(ext.reserved), "ext-superblock.reserved", at + 52,
        f"reserved bytes of the {ExtSuperBlock.SIZE}-byte extended superblock are not 0",
    )  # fmt: skip
    previous = b""
    for at in range(0, len(bootstrap.chunk_table), CHUNK_RECORD_SIZE):
        key = bytes(bootstrap.chunk_table[at : at + 36])
        key = key[:32] + key[32:][::-1]
        check(
            key > previous, "chunk-table.order", ext.chunk_table_offset + at,
            f"chunk table: record {at // CHUNK_RECORD_SIZE} is out of order: digest changed?",
        )  # fmt: skip
        previous = max(key, previous)


def _check_devices(bootstrap: Bootstrap, check: Checks) -> None:
    """No device may overlap another when all are shown as one (format.md 1.4)."""
    end = len(bootstrap.data)
    for info in bootstrap.blobs:
        at = DEVICE_SLOTS_OFFSET + DeviceSlot.SIZE * info.index
        slot = DeviceSlot.unpack(bootstrap.data, at)
        if not slot.mapped_blkaddr:  # nydus-image before 2.3 did not give it
            continue
        start = slot.mapped_blkaddr * bootstrap.block_size
        check(
            start >= end, "device-slot.mapped_blkaddr", at + 68,
            f"device slot {info.index}: mapped at {start:#x}, inside what ends at {end:#x}",
        )  # fmt: skip
        end = max(end, start + slot.blocks * bootstrap.block_size)
