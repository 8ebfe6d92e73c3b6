"""From a tree to a native image: a blob and a bootstrap (format.md 2.2, 2.9)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from rafs_v6.format.erofs import TARFS_BLOCK, BlobFeatures, BlobRecord, Compressor
from rafs_v6.writer.base_image import load_base
from rafs_v6.writer.blob_cache import write_cache_files
from rafs_v6.writer.blob_chunks import BlobChunks
from rafs_v6.writer.blob_file import BlobFile, write_bootstrap_to
from rafs_v6.writer.bootstrap import BlobEntry, Defaults, write_bootstrap
from rafs_v6.writer.chunk_writer import write_chunks
from rafs_v6.writer.errors import BuildError, UsageError
from rafs_v6.writer.load import used_names
from rafs_v6.writer.options import CreateOptions, Into
from rafs_v6.writer.overlay import apply_layer, drop_whiteouts
from rafs_v6.writer.prefetch import prefetch_rows
from rafs_v6.writer.refer import refer_chunks, tarfs_chunks
from rafs_v6.writer.sources.directory import DirectorySource
from rafs_v6.writer.sources.source import Source
from rafs_v6.writer.sources.tar import TarSource
from rafs_v6.writer.sources.tar_file import TarFile, open_tar_file
from rafs_v6.writer.trailer import blob_id_of, write_trailer
from rafs_v6.writer.tree import Tree


@dataclass(frozen=True, slots=True)
class Created:
    """The ids of the image's blobs, none when no file has data; ``bootstrap``: None when inline."""

    blobs: list[str]
    compressor: Compressor
    bootstrap: Path | None


_OWN = ""  # the blob's name in the tree, before its id is known; no other blob's name is empty


def create_from_directory(source: Path, options: CreateOptions) -> Created:
    """Build an image of a directory."""
    found = DirectorySource(source, options.warn)
    if options.parent is None:
        # A directory is no layer of others: what its whiteouts hide is not there (format.md 4.4).
        found.tree = drop_whiteouts(found.tree, options.whiteouts)
    return create(found, options)


def create_from_tar(
    source: Path, options: CreateOptions, into: Into = Into.RAFS, *, estargz: bool = False
) -> Created:
    """Build an image of a tar or tar.gz, which may be a pipe."""
    refers = into is not Into.RAFS
    if refers and (options.chunks.batch_size or options.chunks.cipher):
        raise BuildError(
            "--batch-size and --encrypt are for data that are stored: choose --type targz-rafs"
        )
    stored = open_tar_file(source, digest=refers)
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
        return create(tar, options, stored if refers else None)


def create(source: Source, options: CreateOptions, tar: TarFile | None = None) -> Created:
    """Build an image of ``source``.

    ``tar``: what the image refers to instead of storing data; all of them lie in it.
    """
    tree = _prepared(source.tree, options)
    target = options.blob or _in(options.blob_dir) or _in(options.cache_dir)
    if target is None:
        raise UsageError("no place for the blob: give --blob or --blob-dir")
    defaults = _defaults(options)
    base = load_base(options.parent, options.chunk_dict, defaults, options.whiteouts)
    if base.tree is not None:
        tree = source.tree = apply_layer(base.tree, tree, options.whiteouts)
    first = prefetch_rows(tree, options.prefetch)
    chunks = BlobChunks(_OWN, tree.locations, base.chunks)
    out = BlobFile(target)
    try:
        if tar is None:
            write_chunks(
                tree, source, chunks, options.chunks, out.write, first, options.progress
            )  # fmt: skip
        else:
            refer_chunks(tree, source, chunks, options.chunks, tar, options.progress)
        base.chunks.forget()
        if chunks.original is not None:
            defaults = replace(defaults, compressor=chunks.original.compressor)
        ids = used_names(tree, base.first)

        def bootstrap(own: BlobRecord | None) -> Iterable[bytes | bytearray]:
            entry = {} if own is None else {_OWN: BlobEntry(_OWN, own, chunks.records)}
            blobs = {**base.blobs, **entry}
            table = first if options.prefetch_table else ()
            return write_bootstrap(tree, [blobs[name] for name in ids], defaults, table)

        own_record: list[BlobRecord] = []

        def remembered(own: BlobRecord) -> Iterable[bytes | bytearray]:
            own_record.append(own)
            return bootstrap(own)

        if chunks.records or options.inline_meta:
            boot, name, own_id = write_trailer(out, chunks, options, remembered)
            if options.cache_dir is not None and chunks.records:
                write_cache_files(options.cache_dir, out.reader(), own_id, own_record[-1], chunks)
            if options.blob is not None or options.blob_dir is not None:
                out.publish(options.blob or target.with_name(name))
            # Without a chunk of its own the file is no blob of the image, but it has to be named.
            ids = [known or own_id for known in ids] + [own_id] * (not chunks.records)
        else:
            boot = bootstrap(None)
    finally:
        out.discard()
    written = None if options.bootstrap is None else write_bootstrap_to(options.bootstrap, boot)
    return Created(ids, defaults.compressor, written)


def _create_tarfs(tree: Tree, options: CreateOptions, tar: TarFile) -> Created:
    if options.parent or options.chunk_dict:
        raise BuildError("a tarfs image stands alone: no --parent-bootstrap, no --chunk-dict")
    if options.inline_meta or options.toc or options.bootstrap is None:
        raise BuildError("tar-tarfs makes no blob but the tar: give --bootstrap, nothing inline")
    tree = _prepared(tree, options)
    chunks = tarfs_chunks(tree, _OWN, tar)
    count = next((last.index + 1 for last in chunks.records), 0)
    blob_id = blob_id_of(tar.sha256, options)
    record = BlobRecord(
        blob_id.encode().ljust(64, b"\0"), 0, options.chunks.chunk_size, count,
        Compressor.NONE, options.chunks.digester, chunks.features | BlobFeatures.CAP_TAR_TOC,
        # An absent CCT is "compressed" by 1 in upstream's images too (format.md 1.5).
        tar.size, tar.size, 0, 1, 0, 0, 0, bytes(32), bytes(32), 0, 0, 0, bytes(36),
    )  # fmt: skip
    blobs = (BlobEntry(_OWN, record, chunks.records),) if count else ()
    first = prefetch_rows(tree, options.prefetch) if options.prefetch_table else ()
    defaults = replace(
        _defaults(options), compressor=Compressor.NONE, block_size=TARFS_BLOCK
    )  # fmt: skip
    boot = write_bootstrap_to(options.bootstrap, write_bootstrap(tree, blobs, defaults, first))
    return Created([blob_id] if blobs else [], Compressor.NONE, boot)


def _in(directory: Path | None) -> Path | None:
    return None if directory is None else directory / "blob"


def _prepared(tree: Tree, options: CreateOptions) -> Tree:
    tree.chunk_size = options.chunks.chunk_size
    if options.repeatable:
        tree.uid = tree.gid = array("I", bytes(4 * len(tree)))
    return tree


def _defaults(options: CreateOptions) -> Defaults:
    return Defaults(
        options.chunks.chunk_size, options.chunks.compressor, options.chunks.digester,
        explicit_uid_gid=not options.repeatable,
    )  # fmt: skip
