"""Chunk maps: records as docs/format.md has them, and records that lie."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest
from codec_kit import BATCH, ENCRYPTED, V2, ZRAN, Map
from hypothesis import given
from hypothesis import strategies as st

from rafs_v6._codec import ffi, lib

COMPRESSED, IN_ZRAN, IN_BATCH, SEALED, CRC = 1, 2, 4, 8, 16
MIB = 1 << 20


def v1(uoff: int, usize: int, coff: int, csize: int) -> bytes:
    u, c = usize - 1, csize - 1
    return struct.pack(
        "<QQ",
        uoff | (u & 0xFFFFF) << 44 | (u >> 20) << 8,
        coff | (c & 0xFFFFF) << 44 | (c >> 20) << 40,
    )


def v2(uoff: int, usize: int, coff: int, csize: int, *flags_and_data: int) -> bytes:
    flags, data, *_ = (*flags_and_data, 0, 0)
    return struct.pack(
        "<QQQ", uoff >> 12 | (usize - 1) << 32 | flags << 56, coff | csize << 40, data
    )


def in_context(index: int, off: int) -> int:
    return index << 32 | off


def zran_context(in_off: int, in_len: int, out_len: int, dict_off: int, dict_len: int) -> bytes:
    return struct.pack("<QQQIIIBBH", in_off, 0, dict_off, in_len, out_len, dict_len, 0x5B, 2, 0)


def batch_context(csize: int, usize: int) -> bytes:
    return struct.pack("<II32x", csize, usize)


def decoded(records: list[bytes], contexts: bytes = b"", **info: int) -> tuple[Map, str]:
    m = Map(len(records))
    body = b"".join(records)
    known: dict[str, Any] = {
        "features": 0,
        "nchunks": len(records),
        "data_size": MIB,
        "flat_size": MIB,
        "ctx_off": len(body) if contexts else 0,
        "ctx_size": len(contexts),
    }
    return m, m.decode(body + contexts, **{**known, **info})


def test_v1_records_of_the_format() -> None:
    cct = bytes.fromhex(
        "00000000 00b00000 00000000 00b00000 00100000 00f0ff00 0c000000 00f0ff00"
        "00200000 00703800 0c100000 00703800"
    )
    m = Map(3)
    assert m.decode(cct, nchunks=3, data_size=0x1394, flat_size=0x3000) == ""
    seen = [(m.chunks[i].uoff, m.chunks[i].usize, m.units[i].coff) for i in range(3)]
    assert seen == [(0, 12, 0), (0x1000, 4096, 0xC), (0x2000, 904, 0x100C)]
    assert m.blob.nunits == 3
    assert not any(m.units[i].flags for i in range(3))


def test_v1_with_high_nibbles() -> None:
    record = struct.pack("<QQ", 0xFFFFF00001100F00, 0x0061800001100000)
    m, said = decoded([record], data_size=1 << 30, flat_size=1 << 30)
    assert said == ""
    assert (m.chunks[0].uoff, m.chunks[0].usize) == (0x1100000, 1 << 24)
    unit = m.units[0]
    assert (unit.coff, unit.clen, unit.flags) == (0x1100000, 1561, lib.RAFS_UNIT_COMPRESSED)
    record = struct.pack("<QQ", 0xFFFFFFFFFFFFFF00, 0)
    m, said = decoded([record], flat_size=1 << 44)
    assert "beyond" in said  # 0xffffffff000 + 16 MiB is past what any blob can have


def test_batch_records_of_the_format() -> None:
    cct = bytes.fromhex(
        "000000000b00000500000000000000000000000000000000"
        "010000008713000500000000000000000c00000000000000"
        "1e000000941300000000000000000000000000000000000000000000000000000000000000000000"
    )
    m = Map(2)
    info = {"features": 0x700000A5, "nchunks": 2, "data_size": 30, "flat_size": 0x3000}
    assert m.decode(cct, ctx_off=48, ctx_size=40, nctx=1, **info) == ""
    assert m.blob.nunits == 1
    unit = m.units[0]
    assert (unit.coff, unit.clen, unit.ulen, unit.first, unit.count) == (0, 30, 5012, 0, 2)
    assert unit.flags == lib.RAFS_UNIT_BATCH | lib.RAFS_UNIT_COMPRESSED
    assert [(c.unit_off, c.usize) for c in (m.chunks[0], m.chunks[1])] == [(0, 12), (12, 5000)]


def test_zran_records_of_the_format() -> None:
    record = bytes.fromhex("000000000d0000036301000000120000000c000000000000")
    context = bytes.fromhex(
        "daa52000000000008b614200000000000000010000000000211300007c783000008000005b020000"
    )
    dicts = bytes(65536 + 32768)
    info = {"features": V2 | ZRAN, "nctx": 1, "data_size": 1 << 24}
    m, said = decoded([record], context + dicts, **info)
    assert said == ""
    unit, chunk = m.units[0], m.chunks[0]
    assert (unit.coff, unit.clen, unit.ulen) == (2139610, 4897, 3176572)
    assert (unit.dict_off, unit.dict_len, unit.prime_byte, unit.prime_bits) == (
        65536,
        32768,
        0x5B,
        2,
    )
    assert (chunk.usize, chunk.unit_off) == (14, 0xC00)
    assert m.blob.dicts_len == len(dicts)
    assert "window" in decoded([record], context + dicts[:-1], **info)[1]


def test_context_that_comes_back_is_a_unit_of_its_own() -> None:
    records = [
        v2(0x0000, 10, 0, 0, IN_BATCH | COMPRESSED, in_context(0, 0)),
        v2(0x1000, 10, 90, 0, IN_BATCH | COMPRESSED, in_context(1, 0)),
        v2(0x2000, 10, 0, 0, IN_BATCH | COMPRESSED, in_context(0, 10)),
    ]
    contexts = batch_context(15, 20) + batch_context(10, 10)
    m, said = decoded(records, contexts, features=V2 | BATCH, nctx=2)
    assert said == ""
    assert [(u.coff, u.clen, u.first) for u in m.units[0 : m.blob.nunits]] == [
        (0, 15, 0),
        (90, 10, 1),
        (0, 15, 2),
    ]
    assert not m.units[1].flags & lib.RAFS_UNIT_COMPRESSED


def test_crc_and_encryption() -> None:
    records = [
        v2(0x0000, 5000, 0, 5000, CRC | SEALED, 0x1234),
        v2(0x2000, 5, 5000, 18, SEALED, 0),
        v2(0x3000, 500, 5018, 90, SEALED | COMPRESSED, 0),
    ]
    m, said = decoded(records, features=V2 | ENCRYPTED)
    assert said == ""
    assert (m.chunks[0].flags, m.chunks[0].crc32c) == (lib.RAFS_CHUNK_HAS_CRC, 0x1234)
    assert all(m.units[i].flags & lib.RAFS_UNIT_ENCRYPTED for i in range(3))


def batch(record: bytes, context: bytes = batch_context(50, 100), **info: int) -> str:
    return decoded([record], context, **{"features": V2 | BATCH, "nctx": 1, **info})[1]


def zran(context: bytes, off: int = 0, dicts: bytes = bytes(100), **info: int) -> str:
    record = v2(0, 10, 0, 0, IN_ZRAN | COMPRESSED, in_context(0, off))
    info = {"features": V2 | ZRAN, "nctx": 1, **info}
    return decoded([record], context + dicts, **info)[1]


MEMBER = v2(0, 10, 0, 0, IN_BATCH | COMPRESSED, in_context(0, 0))
LIES = {
    "past the flat blob": lambda: decoded([v1(MIB, 1, 0, 1)])[1],
    "past it by one block": lambda: decoded([v1(MIB - 4096, 4097, 0, 4097)])[1],
    "past the stored blob": lambda: decoded([v1(0, 10, MIB - 9, 10)])[1],
    "stored offset alone past it": lambda: decoded([v1(0, 10, (1 << 40) - 1, 10)])[1],
    "two chunks in the same stored bytes": lambda: decoded(
        [v1(0, 9, 0, 9), v1(4096, 9, 0, 9)], data_size=17
    )[1],
    "descending": lambda: decoded([v1(4096, 1, 0, 1), v1(0, 1, 1, 1)])[1],
    "twice the same": lambda: decoded([v1(0, 1, 0, 1), v1(0, 1, 1, 1)])[1],
    "overlapping when padded": lambda: decoded([v1(0, 4097, 0, 9), v1(4096, 1, 9, 1)])[1],
    "no chunks": lambda: decoded([])[1],
    "too many chunks": lambda: decoded([v1(0, 1, 0, 1)], nchunks=(1 << 24) + 1)[1],
    "short": lambda: decoded([v1(0, 1, 0, 1)[:-1]])[1],
    "long": lambda: decoded([v1(0, 1, 0, 1) + b"x"])[1],
    "v2 raw of another size": lambda: decoded([v2(0, 9, 0, 8)], features=V2)[1],
    "v2 without stored bytes": lambda: decoded([v2(0, 9, 0, 0, COMPRESSED)], features=V2)[1],
    "v2 crc of zero": lambda: decoded([v2(0, 9, 0, 9, CRC)], features=V2)[1],
    "encrypted in a plain blob": lambda: decoded([v2(0, 99, 0, 99, SEALED)], features=V2)[1],
    "encrypted below a block": lambda: decoded(
        [v2(0, 99, 0, 15, SEALED | COMPRESSED)], features=V2 | ENCRYPTED
    )[1],
    "batch in a plain blob": lambda: decoded([MEMBER], features=V2)[1],
    "zran in a batch blob": lambda: batch(v2(0, 9, 0, 0, IN_ZRAN)),
    "batch and zran": lambda: batch(v2(0, 9, 0, 0, IN_ZRAN | IN_BATCH), features=V2 | BATCH | ZRAN),
    "batch and crc": lambda: batch(v2(0, 9, 0, 0, IN_BATCH | CRC, in_context(0, 1))),
    "batch without v2": lambda: batch(MEMBER, features=BATCH),
    "context that is not": lambda: batch(v2(0, 9, 0, 0, IN_BATCH, in_context(1, 0))),
    "member past its batch": lambda: batch(v2(0, 9, 0, 0, IN_BATCH, in_context(0, 92))),
    "member far past its batch": lambda: batch(v2(0, 9, 0, 0, IN_BATCH, in_context(0, 2**32 - 1))),
    "batch that grew": lambda: batch(MEMBER, batch_context(101, 100)),
    "batch of nothing": lambda: batch(MEMBER, batch_context(0, 100)),
    "batch past the stored blob": lambda: batch(MEMBER, data_size=49),
    "batch bomb": lambda: batch(MEMBER, batch_context(100, (1 << 24) + 1)),
    "more contexts than chunks": lambda: batch(MEMBER, batch_context(5, 10) * 2, nctx=2),
    "contexts past the end": lambda: batch(MEMBER, ctx_off=25),
    "contexts that wrap": lambda: batch(MEMBER, ctx_off=2**64 - 40),
    "contexts over the records": lambda: batch(MEMBER, ctx_off=0),
    "context size too small": lambda: batch(MEMBER, ctx_size=39),
    "zran bomb": lambda: zran(zran_context(0, 100, (1 << 24) + 1, 0, 0)),
    "zran past the stored blob": lambda: zran(zran_context(MIB - 9, 10, 100, 0, 0)),
    "zran offset that wraps": lambda: zran(zran_context(2**64 - 5, 10, 100, 0, 0)),
    "zran of nothing": lambda: zran(zran_context(0, 0, 100, 0, 0)),
    "zran with endless input": lambda: zran(
        zran_context(0, (1 << 25) + 1, 100, 0, 0), data_size=1 << 30
    ),
    "zran window outside": lambda: zran(zran_context(0, 10, 100, 1, 100)),
    "zran window that wraps": lambda: zran(zran_context(0, 10, 100, 2**64 - 1, 2)),
    "zran window too large": lambda: zran(zran_context(0, 9, 99, 0, 32769), dicts=bytes(40000)),
    "zran chunk outside": lambda: zran(zran_context(0, 10, 100, 0, 0), off=91),
    "blob past all limits": lambda: decoded([v1(0, 1, 0, 1)], flat_size=(1 << 44) + 1)[1],
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_named(lie: str) -> None:
    assert LIES[lie]() != ""


def test_what_the_lies_are_made_of_is_good() -> None:
    assert batch(MEMBER) == ""
    assert zran(zran_context(0, 10, 100, 0, 100), off=90) == ""


@given(
    cct=st.binary(max_size=600),
    features=st.sampled_from([0, V2, V2 | ENCRYPTED, V2 | BATCH, V2 | ZRAN]),
    nchunks=st.integers(0, 8),
    nctx=st.integers(0, 4),
    ctx_off=st.integers(0, 400),
    ctx_size=st.integers(0, 400),
    flat_size=st.integers(0, 1 << 44),
)
def test_what_passes_is_in_bounds(cct: bytes, **info: int) -> None:
    m = Map(info["nchunks"])
    info["data_size"] = 1 << 40
    if m.decode(cct, **info):
        return
    end = 0
    for i in range(m.blob.nchunks):
        chunk = m.chunks[i]
        unit = m.units[chunk.unit]
        assert chunk.uoff >= end
        end = chunk.uoff + chunk.usize
        assert unit.first <= i < unit.first + unit.count
        assert chunk.unit_off + chunk.usize <= unit.ulen <= 1 << 24
        assert unit.coff + unit.clen <= 1 << 40
        assert unit.dict_off + unit.dict_len <= m.blob.dicts_len
    assert end <= -(-info["flat_size"] // 4096) * 4096


def test_identity_map() -> None:
    m = Map(4)
    assert lib.rafs_identity_map(3 * MIB + 512, MIB, m.chunks, m.units, m.blob) == 0
    assert (m.blob.nchunks, m.blob.nunits) == (4, 4)
    assert (m.chunks[3].uoff, m.chunks[3].usize, m.units[3].coff) == (3 * MIB, 512, 3 * MIB)
    for size, window in ((0, MIB), (9, 0), (9, 512), (9, 32 * MIB), (1 << 62, 4096)):
        ret = lib.rafs_identity_map(size, window, m.chunks, m.units, m.blob)
        assert ret == -errno.EINVAL


def table_record(index: int, uoff: int, usize: int, **other: int) -> bytes:
    flags, crc = other.get("flags", 0), other.get("crc", 0)
    blob, fill = other.get("blob", 2), other.get("fill", (index + 1) % 256)
    return bytes([fill] * 32) + struct.pack(
        "<IIIIQQQII", blob, flags, 0, usize, 0, uoff, 0, index, crc
    )


def test_chunk_table() -> None:
    m, said = decoded([v1(0, 5, 0, 5), v1(4096, 6, 5, 6), v1(8192, 7, 11, 7)])
    assert said == ""
    table = b"".join(
        [
            table_record(1, 4096, 6, flags=0x10, crc=7),
            table_record(0, 0, 5),
            table_record(2, 8192, 8),  # another size: not this chunk
            table_record(2, 0, 7),  # another offset
            table_record(2, 8192, 7, blob=1),  # another blob
            table_record(2, 8192, 7, fill=0),  # no digest
            table_record(0xFFFFFFFF, 0, 5),
        ]
    )
    assert lib.rafs_chunk_table_apply(table, len(table), 2, m.blob) == 2
    assert bytes(m.chunks[0].digest) == b"\1" * 32
    assert (m.chunks[1].flags, m.chunks[1].crc32c) == (3, 7)
    assert m.chunks[2].flags == 0
    assert lib.rafs_chunk_table_apply(table, len(table) - 1, 2, m.blob) == -errno.EINVAL


def test_digest_array() -> None:
    m, said = decoded([v1(0, 5, 0, 5), v1(4096, 6, 5, 6)])
    assert said == ""
    assert lib.rafs_digest_array_apply(b"\7" * 64, 63, m.blob) == -errno.EINVAL
    assert lib.rafs_digest_array_apply(b"\7" * 32 + bytes(32), 64, m.blob) == 1


def test_chunk_find() -> None:
    m, said = decoded([v1(0, 5, 0, 5), v1(4096, 4097, 5, 4097), v1(16384, 1, 9999, 1)])
    assert said == ""
    found = [lib.rafs_chunk_find(m.blob, o) for o in (0, 4095, 4096, 12287, 12288, 20479, 20480)]
    assert found == [0, 0, 1, 1, 2, 2, 3]


def test_verify() -> None:
    m, said = decoded([v2(0, 9, 0, 9, CRC, 0xE3069283)], features=V2)
    assert said == ""
    assert lib.rafs_chunk_verify(m.blob, 0, b"123456789") == 0
    assert lib.rafs_chunk_verify(m.blob, 0, b"123456780") == -errno.EILSEQ
    assert lib.rafs_chunk_verify(m.blob, 1, b"123456789") == -errno.EINVAL
    m.blob.digester = 1
    m.chunks[0].flags |= lib.RAFS_CHUNK_HAS_DIGEST
    assert lib.rafs_chunk_verify(m.blob, 0, b"123456789") == -errno.EILSEQ
    out = ffi.new("uint8_t[32]")
    lib.rafs_digest(1, b"123456789", 9, out)
    m.chunks[0].digest = out
    assert lib.rafs_chunk_verify(m.blob, 0, b"123456789") == 0
