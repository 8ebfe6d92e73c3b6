"""What follows the chunk data in a blob: CCT, digests, bootstrap, TOC (format.md 2.2, 2.8, 2.9)."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable

from rafs_v6.format.erofs import (
    CCT_HEADER_SIZE,
    BlobFeatures,
    BlobRecord,
    Cipher,
    Compressor,
    TocFlags,
)
from rafs_v6.values import replace
from rafs_v6.writer.blob_chunks import BlobChunks
from rafs_v6.writer.blob_file import (
    BlobFile,
    shrink,
    tar_header,
    toc_entry,
    toc_flag,
)
from rafs_v6.writer.cct import cct_header
from rafs_v6.writer.errors import BuildError
from rafs_v6.writer.options import CreateOptions

_INLINED_ID = b"x" * 64
_ID_MAX = 64


def write_trailer(
    out: BlobFile, chunks: BlobChunks, options: CreateOptions,
    bootstrap: Callable[[BlobRecord], Iterable[bytes | bytearray]],
) -> tuple[Iterable[bytes | bytearray], str, str]:  # fmt: skip
    """Everything behind the chunk data; (bootstrap in pieces, name of the object, blob id).

    ``bootstrap`` makes it with the record that this blob is to have.
    """
    framed = options.inline_meta or options.toc
    features = BlobFeatures.ALIGNED | BlobFeatures.CAP_TAR_TOC | chunks.features
    if framed:
        features |= BlobFeatures.HAS_TAR_HEADER
    if options.inline_meta:
        features |= BlobFeatures.INLINED_FS_META
    if options.toc:
        features |= BlobFeatures.HAS_TOC | BlobFeatures.INLINED_CHUNK_DIGEST
    original, cipher = chunks.original, options.chunks.cipher
    toc = b""
    count = len(chunks.records)
    ci_compressor, ci_offset, stored_cct, plain_cct = Compressor.NONE, 0, 0, 0
    if count:
        if original is None:
            data_size = out.size
            if framed:
                out.write(tar_header(b"image.blob", data_size))
            toc += toc_entry(
                b"image.blob", out.digest(), 0, data_size, chunks.flat_size, TocFlags.RAW
            )
        uncompressed_cct = chunks.whole_cct()
        ci_compressor, cct = shrink(
            options.chunks.compressor if original is None else Compressor.ZSTD, uncompressed_cct
        )
        if cipher is not None:
            cct = cipher.encrypt(bytes(cct))
        ci_offset = out.size
        stored_cct, plain_cct = len(cct), len(uncompressed_cct)
        header = cct_header(
            features, ci_compressor, count, ci_offset, stored_cct, plain_cct,
            chunks.context_place,
        )  # fmt: skip
        toc += toc_entry(
            b"blob.meta", hashlib.sha256(uncompressed_cct).digest(), ci_offset, stored_cct,
            plain_cct, toc_flag(ci_compressor),
        )  # fmt: skip
        toc += toc_entry(
            b"blob.meta.header", hashlib.sha256(header).digest(), ci_offset + stored_cct,
            CCT_HEADER_SIZE, CCT_HEADER_SIZE, TocFlags.RAW,
        )  # fmt: skip
        out.write(cct)
        del cct, uncompressed_cct  # the bootstrap needs the room
        out.write(cipher.encrypt(header) if cipher is not None else header)
        if framed:
            out.write(tar_header(b"blob.meta", stored_cct + CCT_HEADER_SIZE))
        if options.toc:
            toc += _write_digests(out, chunks)
    record = BlobRecord(
        _INLINED_ID, 0, options.chunks.chunk_size, count,
        original.compressor if original else options.chunks.compressor,
        options.chunks.digester, features, out.size, chunks.flat_size, 0, ci_compressor, ci_offset,
        stored_cct, plain_cct, bytes(32), bytes(32), 0, 0, 0, bytes(36),
    )  # fmt: skip
    if original is not None:
        record = replace(
            record, blob_id=blob_id_of(original.blob_id, options).encode().ljust(64, b"\0"),
            compressed_size=original.size,
        )  # fmt: skip

    if cipher is not None:
        low, high = struct.unpack("<2Q", cipher.iv)
        record = replace(
            record, blob_meta_digest=cipher.key, blob_meta_size=low, cipher_iv=high,
            cipher_algo=Cipher.AES_128_XTS,
        )  # fmt: skip
    if options.inline_meta:
        whole = b"".join(bootstrap(record))
        boot: Iterable[bytes | bytearray] = (whole,)
        compressor, kept = shrink(Compressor.ZSTD if options.toc else Compressor.NONE, whole)
        toc += toc_entry(
            b"image.boot", hashlib.sha256(whole).digest(), out.size, len(kept), len(whole),
            toc_flag(compressor),
        )  # fmt: skip
        out.write(kept)
        out.write(tar_header(b"image.boot", len(kept)))
        if options.toc:
            out.write(toc + tar_header(b"rafs.blob.toc", len(toc)))
    elif options.toc:
        toc += tar_header(b"rafs.blob.toc", len(toc))
        out.write(toc)
        record = replace(
            record, blob_toc_size=len(toc), blob_toc_digest=hashlib.sha256(toc).digest()
        )
    name = out.digest().hex()
    if original is None:
        name = blob_id_of(name, options)
        record = replace(record, compressed_size=out.size, blob_id=name.encode().ljust(64, b"\0"))
    else:
        record = replace(record, blob_meta_digest=out.digest(), blob_meta_size=out.size)
    if not options.inline_meta:
        boot = bootstrap(record)
    return boot, name, record.blob_id.rstrip(b"\0").decode()


def _write_digests(out: BlobFile, chunks: BlobChunks) -> bytes:
    """Write blob.digest; its TOC entry.

    The array is outside the blob id because upstream's ids are made so (format.md
    2.9) and its tools compare them; the digest of the object is the registry's.
    """
    at, digest = out.size, hashlib.sha256()
    for digests in chunks.records.digests():
        digest.update(digests)
        out.write(digests, hashed=False)
    size = out.size - at
    out.write(tar_header(b"blob.digest", size))
    return toc_entry(b"blob.digest", digest.digest(), at, size, size, TocFlags.RAW)


def blob_id_of(digest: str, options: CreateOptions) -> str:
    if options.blob_id is None:
        return digest
    if not 0 < len(options.blob_id.encode()) <= _ID_MAX or "/" in options.blob_id:
        raise BuildError(f"--blob-id {options.blob_id!r} is no blob id (1 to {_ID_MAX} bytes)")
    return options.blob_id
