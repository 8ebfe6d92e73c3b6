"""From a tree to a native image: a blob and a bootstrap (sheet 2.2, 2.9)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from rafs_v6.build.blobfile import (
    BlobFile,
    cct_header,
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
from rafs_v6.build.refs import refer_chunks, tarfs_chunks
from rafs_v6.build.sources import TarSource, read_directory
from rafs_v6.build.stored import StoredTar, open_stored
from rafs_v6.build.tree import Node, traverse
from rafs_v6.erofs import (
    CCT_HEADER_SIZE,
    TARFS_BLOCK,
    BlobFeatures,
    BlobRecord,
    Compressor,
    TocFlags,
)

_OWN = "own"  # the blob's name in the tree, before its id is known
_INLINED_ID = b"x" * 64
_ID_MAX = 64


class Into(Enum):
    """What becomes of the data of a tar: stored as chunks, or referred to where they are."""

    RAFS = "rafs"
    REF = "ref"
    TARFS = "tarfs"


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
    source: Path, options: CreateOptions, into: Into = Into.RAFS, *, estargz: bool = False
) -> list[str]:
    """Build an image of a tar or tar.gz, which may be a pipe; the ids of its blobs."""
    refers = into is not Into.RAFS
    stored = open_stored(source, digest=refers)
    with (
        closing(stored.file),
        closing(TarSource(stored.file, estargz=estargz, refers=refers)) as tar,
    ):
        if into is Into.TARFS:
            return _create_tarfs(tar.root, options, stored)
        return create(tar.root, options, stored if refers else None)


def create(root: Node, options: CreateOptions, tar: StoredTar | None = None) -> list[str]:
    """Build an image of ``root``; the ids of its blobs (none when no file has data).

    ``tar``: what the image refers to instead of storing data; all extents lie in it.
    """
    _make_repeatable(root, options)
    target = options.blob or (options.blob_dir / _OWN if options.blob_dir else None)
    if target is None:
        raise BuildError("no place for the blob: give --blob or --blob-dir")
    out = BlobFile(target)
    try:
        if tar is None:
            first = prefetch_nodes(root, options.prefetch)
            chunks = store_chunks(root, _OWN, options.chunks, out.write, first)
        else:
            chunks = refer_chunks(root, _OWN, options.chunks, tar)
        if not chunks.records and not options.inline_meta:
            boot, ids = write_bootstrap(root, (), _defaults(options, chunks)), []
        else:
            boot, name, blob_id = _finish(root, out, chunks, options)
            out.publish(options.blob or target.with_name(name))
            ids = [blob_id]
    finally:
        out.discard()
    if options.bootstrap is not None:
        write_atomically(options.bootstrap, boot)
    return ids


def _create_tarfs(root: Node, options: CreateOptions, tar: StoredTar) -> list[str]:
    if options.inline_meta or options.toc or options.bootstrap is None:
        raise BuildError("tar-tarfs makes no blob but the tar: give --bootstrap, nothing inline")
    _make_repeatable(root, options)
    chunks = tarfs_chunks(root, _OWN, options.chunks.chunk_size, tar)
    count = chunks.records[0].index + 1 if chunks.records else 0
    blob_id = _blob_id(tar.sha256, options)
    record = BlobRecord(
        blob_id.encode().ljust(64, b"\0"), 0, options.chunks.chunk_size, count,
        Compressor.NONE, options.chunks.digester, chunks.features | BlobFeatures.CAP_TAR_TOC,
        # An absent CCT is "compressed" by 1 in upstream's images too (sheet 1.5).
        tar.size, tar.size, 0, 1, 0, 0, 0, bytes(32), bytes(32), 0, 0, 0, bytes(36),
    )  # fmt: skip
    blobs = (BlobEntry(_OWN, record, chunks.records),) if count else ()
    first = prefetch_nodes(root, options.prefetch) if options.prefetch_table else ()
    defaults = replace(
        _defaults(options, chunks), compressor=Compressor.NONE, block_size=TARFS_BLOCK
    )
    write_atomically(options.bootstrap, write_bootstrap(root, blobs, defaults, first))
    return [blob_id] if blobs else []


def _make_repeatable(root: Node, options: CreateOptions) -> None:
    if options.repeatable:
        for _, node in traverse(root):
            node.uid = node.gid = 0


def _defaults(options: CreateOptions, chunks: StoredChunks) -> Defaults:
    return Defaults(
        options.chunks.chunk_size,
        chunks.original.compressor if chunks.original else options.chunks.compressor,
        options.chunks.digester, explicit_uid_gid=not options.repeatable,
    )  # fmt: skip


def _finish(
    root: Node, out: BlobFile, chunks: StoredChunks, options: CreateOptions
) -> tuple[bytes, str, str]:
    """Everything behind the chunk data; (bootstrap, name of the object, blob id)."""
    framed = options.inline_meta or options.toc
    features = BlobFeatures.ALIGNED | BlobFeatures.CAP_TAR_TOC | chunks.features
    if framed:
        features |= BlobFeatures.HAS_TAR_HEADER
    if options.inline_meta:
        features |= BlobFeatures.INLINED_FS_META
    if options.toc:
        features |= BlobFeatures.HAS_TOC | BlobFeatures.INLINED_CHUNK_DIGEST
    defaults, original = _defaults(options, chunks), chunks.original
    toc = b""
    count = len(chunks.records)
    ci_compressor, cct, plain_cct, ci_offset = Compressor.NONE, b"", b"", 0
    if count:
        if original is None:
            data_size = out.size
            if framed:
                out.write(tar_header(b"image.blob", data_size))
            toc += toc_entry(
                b"image.blob", out.digest(), 0, data_size, chunks.flat_size, TocFlags.RAW
            )
        plain_cct = bytes(chunks.cct + chunks.contexts)
        ci_compressor, cct = shrink(
            options.chunks.compressor if original is None else Compressor.ZSTD, plain_cct
        )
        ci_offset = out.size
        header = cct_header(
            features, ci_compressor, count, ci_offset, len(cct), len(plain_cct),
            chunks.context_place,
        )  # fmt: skip
        toc += toc_entry(
            b"blob.meta", hashlib.sha256(plain_cct).digest(), ci_offset, len(cct),
            len(plain_cct), toc_flag(ci_compressor),
        )  # fmt: skip
        toc += toc_entry(
            b"blob.meta.header", hashlib.sha256(header).digest(), ci_offset + len(cct),
            CCT_HEADER_SIZE, CCT_HEADER_SIZE, TocFlags.RAW,
        )  # fmt: skip
        out.write(cct)
        out.write(header)
        if framed:
            out.write(tar_header(b"blob.meta", len(cct) + CCT_HEADER_SIZE))
        if options.toc:
            toc += _write_digests(out, chunks)
    record = BlobRecord(
        _INLINED_ID, 0, options.chunks.chunk_size, count, defaults.compressor,
        options.chunks.digester, features, out.size, chunks.flat_size, 0, ci_compressor, ci_offset,
        len(cct), len(plain_cct), bytes(32), bytes(32), 0, 0, 0, bytes(36),
    )  # fmt: skip
    if original is not None:
        record = replace(
            record, blob_id=_blob_id(original.blob_id, options).encode().ljust(64, b"\0"),
            compressed_size=original.size,
        )  # fmt: skip

    def bootstrap(final: BlobRecord) -> bytes:
        # Inline meta without a chunk: upstream's readers refuse a device of no blocks.
        blobs = (BlobEntry(_OWN, final, chunks.records),) if count else ()
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
    elif options.toc:
        toc += tar_header(b"rafs.blob.toc", len(toc))
        out.write(toc)
        record = replace(
            record, blob_toc_size=len(toc), blob_toc_digest=hashlib.sha256(toc).digest()
        )
    name = out.digest().hex()
    if original is None:
        name = _blob_id(name, options)
        record = replace(record, compressed_size=out.size, blob_id=name.encode().ljust(64, b"\0"))
    else:
        record = replace(record, blob_meta_digest=out.digest(), blob_meta_size=out.size)
    if not options.inline_meta:
        boot = bootstrap(record)
    return boot, name, record.blob_id.rstrip(b"\0").decode()


def _write_digests(out: BlobFile, chunks: StoredChunks) -> bytes:
    """Write blob.digest; its TOC entry.

    The array is outside the blob id because upstream's ids are made so (sheet
    2.9) and its tools compare them; the digest of the object is the registry's.
    """
    digests = b"".join(c.digest for c in chunks.records)
    at = out.size
    out.write(digests, hashed=False)
    out.write(tar_header(b"blob.digest", len(digests)))
    return toc_entry(
        b"blob.digest", hashlib.sha256(digests).digest(), at, len(digests), len(digests),
        TocFlags.RAW,
    )  # fmt: skip


def _blob_id(digest: str, options: CreateOptions) -> str:
    if options.blob_id is None:
        return digest
    if not 0 < len(options.blob_id.encode()) <= _ID_MAX or "/" in options.blob_id:
        raise BuildError(f"--blob-id {options.blob_id!r} is no blob id (1 to {_ID_MAX} bytes)")
    return options.blob_id
