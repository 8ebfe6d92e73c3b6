"""GUID partition tables (UEFI specification, chapter 5), read only.

Both copies of the table are tried; checksums and bounds are verified, so that a
damaged table is an error and never a wrong range.
"""

from __future__ import annotations

import os
import struct
import uuid
import zlib

from rafs_v6.values import dataclass

SECTOR = 512
BASIC_DATA = uuid.UUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7")

_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_TABLE_LIMIT = 4 * 1024 * 1024


class GptError(ValueError):
    """No valid table."""


@dataclass(frozen=True, slots=True)
class Partition:
    """``off`` and ``size`` in bytes."""

    kind: uuid.UUID
    guid: uuid.UUID
    name: str
    off: int
    size: int


def read_partitions(fd: int) -> list[Partition]:
    size = os.lseek(fd, 0, os.SEEK_END)
    try:
        return _read_table(fd, 1, size)
    except GptError:
        return _read_table(fd, size // SECTOR - 1, size)


def _read_table(fd: int, lba: int, disk_size: int) -> list[Partition]:
    block = os.pread(fd, SECTOR, lba * SECTOR) if lba > 0 else b""
    if len(block) < SECTOR or block[:8] != b"EFI PART":
        raise GptError("no GUID partition table")
    fields = _HEADER.unpack_from(block)
    header_size, crc, own_lba = fields[2], fields[3], fields[5]
    table_lba, count, entry_size, table_crc = fields[10:14]
    if not _HEADER.size <= header_size <= SECTOR or own_lba != lba:
        raise GptError("a partition table with an impossible header")
    plain = block[:16] + bytes(4) + block[20:header_size]
    if zlib.crc32(plain) != crc:
        raise GptError("the partition table's header is damaged")
    if entry_size < _ENTRY.size or not 0 < count * entry_size <= _TABLE_LIMIT:
        raise GptError("a partition table of impossible size")
    table = os.pread(fd, count * entry_size, table_lba * SECTOR)
    if zlib.crc32(table) != table_crc:
        raise GptError("the partition table is damaged")
    found = []
    for at in range(0, len(table), entry_size):
        kind, guid, first, last, _, name = _ENTRY.unpack_from(table, at)
        if kind == bytes(16):
            continue
        end = (last + 1) * SECTOR
        if first > last or end > disk_size:
            raise GptError(f"a partition of sectors {first} to {last} on {disk_size} bytes")
        text = name.decode("utf-16-le", "replace").partition("\0")[0]
        found.append(
            Partition(
                uuid.UUID(bytes_le=kind),
                uuid.UUID(bytes_le=guid),
                text,
                first * SECTOR,
                end - first * SECTOR,
            )
        )
    return found
