"""From a tree to a native image: a blob and a bootstrap (sheet 2.2, 2.9)."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rafs_v6.build.blobfile import (
    BlobFile,
    cct_header,
    pack_cct,
    shrink,
    tar_header,
    toc_entry,
    toc_flag,
    write_atomically,
)
from rafs_v6.build.bootstrap import BlobEntry, Defaults, write_bootstrap
from rafs_v6.build.chunks import ChunkOptions, StoredChunks, store_chunks
from rafs_v6.build.errors import BuildError
from rafs_v6.build.prefetch import prefetch_nodes
from rafs_v6.build.sources import TarSource, read_directory, spool
from rafs_v6.build.tree import Node, traverse
from rafs_v6.erofs import (
    CCT_HEADER_SIZE,
    BlobFeatures,
    BlobRecord,
    Compressor,
    TocFlags,
)

_OWN = "own"  # the blob's name in the tree, before its id is known
_INLINED_ID = b"x" * 64
_ID_MAX = 64


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """``blob`` or ``blob_dir`` says where the blob goes; ``bootstrap`` is None when inline.

    ``prefetch``: absolute paths whose data come first; ``prefetch_table``: also tell the reader.
    """

    chunks: ChunkOptions
    bootstrap: Path | None
    blob: Path | None
    blob_dir: Path | None
    inline_meta: bool = False
    toc: bool = False
    blob_id: str | None = None
    repeatable: bool = False
    prefetch: Sequence[bytes] = ()
    prefetch_table: bool = False


def create_from_directory(source: Path, options: CreateOptions) -> list[str]:
    """Build an image of a directory; the ids of its blobs."""
    return create(read_directory(source), options)


def create_from_tar(
    source: Path, options: CreateOptions, *, estargz: bool = False
) -> list[str]:
    """Build an image of a tar or tar.gz, which may be a pipe; the ids of its blobs."""
    with source.open("rb") as stream:
        seekable = stat.S_ISREG(source.stat().st_mode)
        if seekable:
            seekable = stream.read(2) != b"\x1f\x8b"
            stream.seek(0)
        tar = TarSource(stream if seekable else spool(stream), estargz=estargz)
        try:
            return create(tar.root, options)
        finally:
            tar.close()


def create(root: Node, options: CreateOptions) -> list[str]:
    """Build an image of ``root``; the ids of its blobs (none when no file has data)."""
    if options.repeatable:
        for _, node in traverse(root):
            node.uid = node.gid = 0
    where = options.blob.parent if options.blob else options.blob_dir
    if where is None:
        raise BuildError("no place for the blob: give --blob or --blob-dir")
    defaults = Defaults(
        options.chunks.chunk_size, options.chunks.compressor, options.chunks.digester,
        explicit_uid_gid=not options.repeatable,
    )  # fmt: skip
    out = BlobFile(options.blob or where / _OWN)
    try:
        first = prefetch_nodes(root, options.prefetch)
        stored = store_chunks(root, _OWN, options.chunks, out.write, first)
        if not stored.records and not options.inline_meta:
            boot, ids = write_bootstrap(root, (), defaults), []
        else:
            boot, blob_id = _finish(root, out, stored, options, defaults)
            out.publish(options.blob or where / blob_id)
            ids = [blob_id]
    finally:
        out.discard()
    if options.bootstrap is not None:
        write_atomically(options.bootstrap, boot)
    return ids


def _finish(
    root: Node, out: BlobFile, stored: StoredChunks, options: CreateOptions, defaults: Defaults
) -> tuple[bytes, str]:
    """Everything behind the chunk data; (bootstrap, blob id)."""
    framed = options.inline_meta or options.toc
    features = BlobFeatures.ALIGNED | BlobFeatures.CAP_TAR_TOC
    if framed:
        features |= BlobFeatures.HAS_TAR_HEADER
    if options.inline_meta:
        features |= BlobFeatures.INLINED_FS_META
    if options.toc:
        features |= BlobFeatures.HAS_TOC | BlobFeatures.INLINED_CHUNK_DIGEST
    toc = b""
    count = len(stored.records)
    ci_compressor, cct, plain_cct, ci_offset = Compressor.NONE, b"", b"", 0
    if count:
        data_size = out.size
        if framed:
            out.write(tar_header(b"image.blob", data_size))
        toc += toc_entry(
            b"image.blob", out.digest(), 0, data_size, stored.flat_size, TocFlags.RAW
        )
        plain_cct = pack_cct(stored.records)
        ci_compressor, cct = shrink(options.chunks.compressor, plain_cct)
        ci_offset = out.size
        header = cct_header(features, ci_compressor, count, ci_offset, len(cct), len(plain_cct))
        toc += toc_entry(
            b"blob.meta", hashlib.sha256(plain_cct).digest(), ci_offset, len(cct),
            len(plain_cct), toc_flag(ci_compressor),
        )  # fmt: skip
        toc += toc_entry(
            b"blob.meta.header", hashlib.sha256(header).digest(), ci_offset + len(cct),
            CCT_HEADER_SIZE, CCT_HEADER_SIZE, TocFlags.RAW,
        )  # fmt: skip
        out.write(cct + header)
        if framed:
            out.write(tar_header(b"blob.meta", len(cct) + CCT_HEADER_SIZE))
        if options.toc:
            toc += _write_digests(out, stored)
    record = BlobRecord(
        _INLINED_ID, 0, options.chunks.chunk_size, count, options.chunks.compressor,
        options.chunks.digester, features, out.size, stored.flat_size, 0, ci_compressor, ci_offset,
        len(cct), len(plain_cct), bytes(32), bytes(32), 0, 0, 0, bytes(36),
    )  # fmt: skip

    def bootstrap(final: BlobRecord) -> bytes:
        # Inline meta without a chunk: upstream's readers refuse a device of no blocks.
        blobs = (BlobEntry(_OWN, final, stored.records),) if count else ()
        first = prefetch_nodes(root, options.prefetch) if options.prefetch_table else ()
        return write_bootstrap(root, blobs, defaults, first)

    if options.inline_meta:
        boot = bootstrap(record)
        compressor, kept = shrink(Compressor.ZSTD if options.toc else Compressor.NONE, boot)
        toc += toc_entry(
            b"image.boot", hashlib.sha256(boot).digest(), out.size, len(kept), len(boot),
            toc_flag(compressor),
        )  # fmt: skip
        out.write(kept)
        out.write(tar_header(b"image.boot", len(kept)))
        if options.toc:
            out.write(toc + tar_header(b"rafs.blob.toc", len(toc)))
        return boot, _blob_id(out, options)
    if options.toc:
        toc += tar_header(b"rafs.blob.toc", len(toc))
        out.write(toc)
        record = replace(
            record, blob_toc_size=len(toc), blob_toc_digest=hashlib.sha256(toc).digest()
        )
    blob_id = _blob_id(out, options)
    record = replace(record, compressed_size=out.size, blob_id=blob_id.encode().ljust(64, b"\0"))
    return bootstrap(record), blob_id


def _write_digests(out: BlobFile, stored: StoredChunks) -> bytes:
    """Write blob.digest; its TOC entry.

    The array is outside the blob id because upstream's ids are made so (sheet
    2.9) and its tools compare them; the digest of the object is the registry's.
    """
    digests = b"".join(c.digest for c in stored.records)
    at = out.size
    out.write(digests, hashed=False)
    out.write(tar_header(b"blob.digest", len(digests)))
    return toc_entry(
        b"blob.digest", hashlib.sha256(digests).digest(), at, len(digests), len(digests),
        TocFlags.RAW,
    )  # fmt: skip


def _blob_id(out: BlobFile, options: CreateOptions) -> str:
    if options.blob_id is None:
        return out.digest().hex()
    if not 0 < len(options.blob_id.encode()) <= _ID_MAX or "/" in options.blob_id:
        raise BuildError(f"--blob-id {options.blob_id!r} is no blob id (1 to {_ID_MAX} bytes)")
    return options.blob_id



