"""The smallest EROFS image, for probes."""

from __future__ import annotations

import struct

from rafs_v6.format import erofs


def tiny_image() -> bytes:
    """An empty root directory at nid 128 (byte 4096).  It claims chunk-based files, as every image
    of ours has them, which EROFS before Linux 5.15 refuses."""
    image = bytearray(2 * erofs.EROFS_BLOCK)
    super_block = struct.pack("<I8xBxH", erofs.EROFS_SUPER_MAGIC_V1, 12, 128)
    image[erofs.EROFS_SUPER_OFFSET : erofs.EROFS_SUPER_OFFSET + len(super_block)] = super_block
    struct.pack_into("<Q", image, erofs.EROFS_SUPER_OFFSET + 16, 1)
    needs = erofs.EROFS_FEATURE_INCOMPAT_CHUNKED_FILE
    struct.pack_into("<I", image, erofs.EROFS_SUPER_OFFSET + 80, needs)
    nid = erofs.EROFS_BLOCK // erofs.EROFS_SLOTSIZE
    body = struct.pack("<4H4I2HI", 4, 0, 0o040755, 2, 27, 0, 0, 1, 0, 0, 0)
    dirents = erofs.DIRENT.pack(nid, 24, 2, 0) + erofs.DIRENT.pack(nid, 25, 2, 0) + b"..."
    image[erofs.EROFS_BLOCK : erofs.EROFS_BLOCK + len(body + dirents)] = body + dirents
    return bytes(image)
