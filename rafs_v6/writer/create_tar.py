"""From a tar or tar.gz to an image: stored in chunks, referred to, or mounted as it is."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import IO

from rafs_v6.format.erofs import TARFS_BLOCK, BlobFeatures, BlobRecord, Compressor
from rafs_v6.values import replace
from rafs_v6.writer.blob_chunks import BlobChunks
from rafs_v6.writer.blob_file import write_bootstrap_to
from rafs_v6.writer.bootstrap import BlobEntry, write_bootstrap
from rafs_v6.writer.create import OWN_BLOB, Created, create, defaults_of, prepared
from rafs_v6.writer.errors import BuildError
from rafs_v6.writer.options import CreateOptions, Into
from rafs_v6.writer.prefetch import prefetch_rows
from rafs_v6.writer.refer import refer_chunks, tarfs_chunks
from rafs_v6.writer.refer_gzip import create_from_gzip
from rafs_v6.writer.sources.source import Source
from rafs_v6.writer.sources.tar import TarSource
from rafs_v6.writer.sources.tar_file import GZIP_MAGIC, TarFile, open_tar_file
from rafs_v6.writer.stream import create_from_stream
from rafs_v6.writer.trailer import blob_id_of
from rafs_v6.writer.tree import Tree


def create_from_tar(
    source: Path, options: CreateOptions, into: Into = Into.RAFS, *, estargz: bool = False
) -> Created:
    """Build an image of a tar or tar.gz, which may be a pipe.

    A plain tar out of a pipe is not kept anywhere, unless some of its files are to come first;
    nor is a tar.gz that is referred to.
    """
    refers = into is not Into.RAFS
    if refers and (options.chunks.batch_size or options.chunks.cipher):
        raise BuildError(
            "--batch-size and --encrypt are for data that are stored: choose --type targz-rafs"
        )
    stream, first = source.open("rb"), b""
    if into is Into.RAFS and not stream.seekable() and options.prefetch in ([], [b"/"]):
        first = stream.read(len(GZIP_MAGIC))
        if first != GZIP_MAGIC:
            with stream:
                return create_from_stream(
                    _Prefixed(first, stream), None, options, estargz=estargz
                )
    if into is Into.REF:
        first = stream.read(len(GZIP_MAGIC))
        if first == GZIP_MAGIC:
            return create_from_gzip(stream, first, options, estargz=estargz)
    stored = open_tar_file(stream, first, digest=refers)
    with (
        closing(stored.file),
        closing(
            TarSource(
                stored.file,
                stored.size,
                options.whiteouts,
                estargz=estargz,
                refers=refers,
                warn=options.warn,
            )
        ) as tar,
    ):
        if into is Into.TARFS:
            return _create_tarfs(tar.tree, options, stored)

        def refer(
            tree: Tree, source: Source, chunks: BlobChunks, write: object, first: object
        ) -> None:
            refer_chunks(tree, source, chunks, options.chunks, stored, options.progress)

        return create(tar, options, refer if refers else None)


class _Prefixed:
    """``stream`` with the bytes that were read of it already."""

    def __init__(self, first: bytes, stream: IO[bytes]) -> None:
        self._first, self._stream = first, stream

    def read(self, length: int, /) -> bytes:
        if self._first:
            data, self._first = self._first[:length], self._first[length:]
            return data
        return self._stream.read(length)


def _create_tarfs(tree: Tree, options: CreateOptions, tar: TarFile) -> Created:
    if options.parent or options.chunk_dict:
        raise BuildError("a tarfs image stands alone: no --parent-bootstrap, no --chunk-dict")
    if options.inline_meta or options.toc or options.bootstrap is None:
        raise BuildError("tar-tarfs makes no blob but the tar: give --bootstrap, nothing inline")
    tree = prepared(tree, options)
    chunks = tarfs_chunks(tree, OWN_BLOB, tar)
    count = next((last.index + 1 for last in chunks.records), 0)
    blob_id = blob_id_of(tar.sha256, options)
    record = BlobRecord(
        blob_id.encode().ljust(64, b"\0"), 0, options.chunks.chunk_size, count,
        Compressor.NONE, options.chunks.digester, chunks.features | BlobFeatures.CAP_TAR_TOC,
        # An absent CCT is "compressed" by 1 in upstream's images too (format.md 1.5).
        tar.size, tar.size, 0, 1, 0, 0, 0, bytes(32), bytes(32), 0, 0, 0, bytes(36),
    )  # fmt: skip
    blobs = (BlobEntry(OWN_BLOB, record, chunks.records),) if count else ()
    first = prefetch_rows(tree, options.prefetch) if options.prefetch_table else ()
    defaults = replace(
        defaults_of(options), compressor=Compressor.NONE, block_size=TARFS_BLOCK
    )  # fmt: skip
    boot = write_bootstrap_to(options.bootstrap, write_bootstrap(tree, blobs, defaults, first))
    return Created([blob_id] if blobs else [], Compressor.NONE, boot)
