"""What the tests of rafs_v6._codec share: calls as Python values, and a minimal reader.

The reader knows just enough of a bootstrap (format.md 1.3, 1.5) to hand real blobs to the C code.
It is on purpose not rafs_v6's own: two readers that agree are worth more than one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rafs_v6._codec import ffi, lib

V2, ZRAN, SEPARATE, TARFS, BATCH, ENCRYPTED = 0x4, 0x8, 0x10, 0x40, 0x80, 0x100


class Decoder:
    """One rafs_decoder, freed with its owner."""

    def __init__(self) -> None:
        self.ptr = ffi.gc(lib.rafs_decoder_new(), lib.rafs_decoder_free)

    def decompress(self, compressor: int, data: bytes, length: int) -> bytes | int:
        """The plain bytes, or the negative errno."""
        out = ffi.new("uint8_t[]", max(length, 1))
        n = lib.rafs_decompress(self.ptr, compressor, data, len(data), out, length)
        return bytes(ffi.buffer(out, n)) if n >= 0 else n


def compress(compressor: int, data: bytes, level: int = 3) -> bytes:
    bound = lib.rafs_compress_bound(compressor, len(data))
    out = ffi.new("uint8_t[]", max(bound, 1))
    n = lib.rafs_compress(compressor, level, data, len(data), out, bound)
    assert n >= 0, n
    return bytes(ffi.buffer(out, n))


def digest(digester: int, data: bytes) -> bytes:
    out = ffi.new("uint8_t[32]")
    assert lib.rafs_digest(digester, data, len(data), out) == 0
    return bytes(out)


def xts(encrypt: bool, key: bytes, iv: bytes, data: bytes) -> bytes | int:
    """The result, or the negative errno."""
    out = ffi.new("uint8_t[]", max(len(data), 18))
    run = lib.rafs_xts_encrypt if encrypt else lib.rafs_xts_decrypt
    n = run(key, iv, data, len(data), out, len(out))
    return bytes(ffi.buffer(out, n)) if n >= 0 else n


class Map:
    """A decoded chunk map that owns its memory."""

    def __init__(self, nchunks: int) -> None:
        self.chunks = ffi.new("struct rafs_chunk[]", max(nchunks, 1))
        self.units = ffi.new("struct rafs_unit[]", max(nchunks, 1))
        self.blob = ffi.new("struct rafs_blob *")
        self.cct: Any = None

    def decode(self, cct: bytes, **info: int) -> str:
        """Empty when the CCT is good, else what is wrong with it."""
        self.cct = ffi.new("uint8_t[]", cct) if cct else ffi.new("uint8_t[1]")
        said = ffi.new("char[]", 200)
        ret = lib.rafs_cct_decode(
            self.cct,
            len(cct),
            ffi.new("struct rafs_cct_info *", info),
            self.chunks,
            self.units,
            self.blob,
            said,
            len(said),
        )
        message = bytes(ffi.string(said)).decode()
        assert (ret == 0) == (message == ""), (ret, message)
        return message

    def decode_unit(self, decoder: Decoder, unit: int, stored: bytes) -> bytes | int:
        length = self.blob.units[unit].ulen
        out = ffi.new("uint8_t[]", length)
        ret = lib.rafs_unit_decode(decoder.ptr, self.blob, unit, stored, len(stored), out, length)
        return bytes(ffi.buffer(out, length)) if ret == 0 else ret


@dataclass(frozen=True, slots=True)
class Record:
    """A record of the blob table, as far as decoding needs it."""

    index: int
    blob_id: str
    meta_id: str
    nchunks: int
    compressor: int
    digester: int
    features: int
    flat_size: int
    data_size: int
    ci_compressor: int
    ci_off: int
    ci_clen: int
    ci_ulen: int
    key: bytes
    iv: bytes


def blob_table(boot: bytes) -> Iterator[Record]:
    off, size = struct.unpack_from("<QI", boot, 1152 + 8)
    for pos in range(off, off + size, 256):
        rec = boot[pos : pos + 256]
        index, _, nchunks, comp, dig, features, csize, usize = struct.unpack_from("<6I2Q", rec, 64)
        ci_comp, ci_off, ci_clen, ci_ulen = struct.unpack_from("<I3Q", rec, 108)
        blob_id = rec[:64].rstrip(b"\0").decode()
        separate = features & SEPARATE
        data_size = csize if separate else ci_off - (512 if features & 0x10000000 else 0)
        yield Record(
            index,
            blob_id,
            rec[168:200].hex() if separate else blob_id,
            nchunks,
            comp,
            dig,
            features,
            usize,
            data_size,
            ci_comp,
            ci_off,
            ci_clen,
            ci_ulen,
            rec[168:200],
            rec[200:216],
        )


def chunk_table(boot: bytes) -> bytes:
    off, size = struct.unpack_from("<QQ", boot, 1152 + 24)
    return boot[off : off + size]


def load_map(rec: Record, blobs: Path, decoder: Decoder) -> Map:
    """The chunk map of a golden blob, by the C code."""
    with (blobs / rec.meta_id).open("rb") as meta:
        meta.seek(rec.ci_off)
        stored = meta.read(rec.ci_clen)
        header = meta.read(4096)
    encrypted = bool(rec.features & ENCRYPTED)
    if encrypted:
        opened, plain_header = (xts(False, rec.key, rec.iv, part) for part in (stored, header))
        assert isinstance(opened, bytes)
        assert isinstance(plain_header, bytes)
        stored, header = opened, plain_header
    cct = decoder.decompress(rec.ci_compressor, stored, rec.ci_ulen)
    assert isinstance(cct, bytes)
    assert struct.unpack_from("<I", header)[0] == 0xB10BB10B
    ctx_off, ctx_size, nctx = struct.unpack_from("<QQI", header, 40)
    chunk_map = Map(rec.nchunks)
    blob = chunk_map.blob
    blob.compressor, blob.digester, blob.encrypted = rec.compressor, rec.digester, encrypted
    blob.key, blob.iv = rec.key, rec.iv
    said = chunk_map.decode(
        cct,
        features=rec.features,
        nchunks=rec.nchunks,
        data_size=rec.data_size,
        flat_size=rec.flat_size,
        ctx_off=ctx_off,
        ctx_size=ctx_size,
        nctx=nctx,
    )
    assert said == ""
    return chunk_map
