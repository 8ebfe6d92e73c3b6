"""From a tree to a native image: a blob and a bootstrap (format.md 2.2, 2.9)."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rafs_v6.format.erofs import BlobRecord, Compressor
from rafs_v6.values import dataclass, replace
from rafs_v6.writer.base_image import BaseImage, load_base
from rafs_v6.writer.blob_chunks import BlobChunks
from rafs_v6.writer.blob_file import BlobFile, bootstrap_at, is_stream, write_bootstrap_to
from rafs_v6.writer.bootstrap import BlobEntry, Defaults, write_bootstrap
from rafs_v6.writer.chunk_writer import write_chunks
from rafs_v6.writer.errors import UsageError
from rafs_v6.writer.options import CreateOptions
from rafs_v6.writer.overlay import apply_layer, drop_whiteouts
from rafs_v6.writer.prefetch import prefetch_rows
from rafs_v6.writer.sources.source import Source
from rafs_v6.writer.trailer import write_trailer
from rafs_v6.writer.tree import Tree, used_names

OWN_BLOB = ""  # the blob's name in the tree, before its id is known; no other blob's name is empty

Fill = Callable[[Tree, Source, BlobChunks, Callable[[Any], None], Sequence[int]], None]
"""Finds the chunks of all files that have none yet; the last is the rows whose data come first."""


@dataclass(frozen=True, slots=True)
class Created:
    """The ids of the image's blobs, none when no file has data; ``bootstrap``: None when inline.

    ``blob_sha256`` (hex) and ``blob_size``: of the object that was written, "" and 0 without one.
    """

    blobs: list[str]
    compressor: Compressor
    bootstrap: Path | None
    blob_sha256: str = ""
    blob_size: int = 0


def create_from_directory(source: Path, options: CreateOptions) -> Created:
    """Build an image of a directory."""
    # Few commands need all sources.
    from rafs_v6.writer.sources.directory import DirectorySource  # noqa: PLC0415

    found = DirectorySource(source, options.warn)
    if options.parent is None:
        # A directory is no layer of others: what its whiteouts hide is not there (format.md 4.4).
        found.tree = drop_whiteouts(found.tree, options.whiteouts)
    return create(found, options)


def create(source: Source, options: CreateOptions, fill: Fill | None = None) -> Created:
    """Build an image of ``source``.  ``fill``: other than to store the data."""
    tree = prepared(source.tree, options)
    base = load_base(options.parent, options.chunk_dict, defaults_of(options), options.whiteouts)
    if base.tree is not None:
        tree = source.tree = apply_layer(base.tree, tree, options.whiteouts)
    first = prefetch_rows(tree, options.prefetch)
    chunks = BlobChunks(OWN_BLOB, tree.locations, base.chunks)
    target = blob_target(options)
    out = BlobFile(target)
    try:
        if fill is not None:
            fill(tree, source, chunks, out.write, first)
        else:
            write_chunks(
                tree, source, chunks, options.chunks, out.write, first, options.progress
            )  # fmt: skip
        return finish(tree, base, chunks, options, out, first)
    finally:
        out.discard()


def finish(
    tree: Tree, base: BaseImage, chunks: BlobChunks, options: CreateOptions, out: BlobFile,
    first: Sequence[int],
) -> Created:  # fmt: skip
    """The rest of an image whose data are in ``out``; ``first``: rows of the prefetch table."""
    base.chunks.forget()
    defaults = defaults_of(options)
    if chunks.original is not None:
        defaults = replace(defaults, compressor=chunks.original.compressor)
    ids = used_names(tree, base.first)
    record: list[BlobRecord] = []

    def bootstrap(own: BlobRecord | None) -> Iterable[bytes | bytearray]:
        blobs = dict(base.blobs)
        if own is not None:
            record.append(own)
            blobs[OWN_BLOB] = BlobEntry(OWN_BLOB, own, chunks.records)
        table = first if options.prefetch_table else ()
        return write_bootstrap(tree, [blobs[name] for name in ids], defaults, table)

    digest, size, target = "", 0, None
    if chunks.records or options.inline_meta:
        boot, name, own_id = write_trailer(out, chunks, options, bootstrap)
        if options.cache_dir is not None and chunks.records:
            _write_cache_files(options.cache_dir, out, own_id, record[-1], chunks)
        if options.cache_dir is None or options.blob is not None or options.blob_dir is not None:
            digest, size = out.object_digest().hex(), out.size
            target = options.blob or (_in(options.blob_dir) or Path("blob")).with_name(name)
        # Without a chunk of its own the file is no blob of the image, but it has to be named.
        ids = [known or own_id for known in ids] + [own_id] * (not chunks.records)
    else:
        boot = bootstrap(None)
    written = _appear(out, target, boot, options.bootstrap)
    return Created(ids, defaults.compressor, written, digest, size)


def _appear(
    out: BlobFile, target: Path | None, boot: Iterable[bytes | bytearray], bootstrap: Path | None
) -> Path | None:
    """The blob as ``target``, then its bootstrap, where there are such; its path.

    Both go to the disk at once, before either appears.  Whoever reads a pipe may wait for the end
    of the blob before the bootstrap.
    """
    if bootstrap is None or out.is_stream or is_stream(bootstrap):
        if target is not None:
            out.publish(target)
        return None if bootstrap is None else write_bootstrap_to(bootstrap, boot)
    if target is not None:
        out.begin_sync()
    with bootstrap_at(bootstrap, boot) as appear:
        if target is not None:
            out.publish(target)
        return appear()


def blob_target(options: CreateOptions) -> Path:
    """Where the blob is written to at first."""
    target = options.blob or _in(options.blob_dir) or _in(options.cache_dir)
    if target is None:
        raise UsageError("no place for the blob: give --blob or --blob-dir")
    return target


def _in(directory: Path | None) -> Path | None:
    return None if directory is None else directory / "blob"


def _write_cache_files(
    directory: Path, out: BlobFile, blob_id: str, record: BlobRecord, chunks: BlobChunks
) -> None:
    from rafs_v6.writer.blob_cache import write_cache_files  # noqa: PLC0415 - seldom

    write_cache_files(directory, out.reader(), blob_id, record, chunks)


def prepared(tree: Tree, options: CreateOptions) -> Tree:
    """``tree`` with the chunk size, and with the owners that the image is to have."""
    tree.chunk_size = options.chunks.chunk_size
    if options.repeatable:
        tree.uid = tree.gid = array("I", bytes(4 * len(tree)))
    return tree


def defaults_of(options: CreateOptions) -> Defaults:
    return Defaults(
        options.chunks.chunk_size, options.chunks.compressor, options.chunks.digester,
        explicit_uid_gid=not options.repeatable,
    )  # fmt: skip
