"""Bootstraps of layers become the bootstrap of an image (format.md 4.3)."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path

from rafs_v6.format.erofs import BlobFeatures, BlobRecord, Compressor
from rafs_v6.values import dataclass, replace
from rafs_v6.writer.blob_file import write_bootstrap_to
from rafs_v6.writer.bootstrap import BlobEntry, Defaults, write_bootstrap
from rafs_v6.writer.errors import BuildError
from rafs_v6.writer.load import (
    Loaded,
    add_blob,
    check_alike,
    file_id,
    load,
    load_blobs,
    open_bootstrap,
    sha256_of_name,
    standalone,
    with_id,
)
from rafs_v6.writer.overlay import WhiteoutSpec, apply_layer, drop_whiteouts
from rafs_v6.writer.prefetch import prefetch_rows
from rafs_v6.writer.tree import Tree, used_names


@dataclass(frozen=True, slots=True)
class LayerNames:
    """What a registry knows of the layers; each list is empty or has one entry a layer."""

    blob_digests: Sequence[str] = ()
    original_blob_ids: Sequence[str] = ()
    blob_sizes: Sequence[int] = ()
    toc_digests: Sequence[str] = ()
    toc_sizes: Sequence[int] = ()

    def check(self, layers: int) -> None:
        for option, values in (
            ("--blob-digests", self.blob_digests),
            ("--original-blob-ids", self.original_blob_ids),
            ("--blob-sizes", self.blob_sizes),
            ("--blob-toc-digests", self.toc_digests),
            ("--blob-toc-sizes", self.toc_sizes),
        ):
            if values and len(values) != layers:
                raise BuildError(f"{option}: {len(values)} values for {layers} layers")


@dataclass(frozen=True, slots=True)
class Merged:
    """What ``merge`` wrote: the blobs that are still used, and the file system's compressor."""

    blobs: list[str]
    compressor: Compressor
    bootstrap: Path


def merge(
    sources: Sequence[Path], names: LayerNames, target: Path, prefetch: Sequence[bytes] = (),
    *, chunk_dict: Path | None = None, parent: Path | None = None,
) -> Merged:  # fmt: skip
    """Merge layers, lowest first, into ``target``, or into a file of that directory.

    ``parent``: an image below the lowest layer, its blobs under the names that they have.
    ``chunk_dict``: the bootstrap that the layers were built against; its blobs keep their names.
    """
    names.check(len(sources))
    dictionary = set()
    if chunk_dict is not None:
        dictionary = {
            b.name for b in load_blobs(open_bootstrap(chunk_dict, tables_only=True), chunk_dict)
        }
    blobs: dict[str, BlobEntry] = {}
    tree: Tree | None = None
    defaults: Defaults | None = None
    if parent is not None:
        below = load(parent)
        tree, defaults = drop_whiteouts(below.tree, WhiteoutSpec.OCI), below.defaults
        blobs.update(below.blobs)
    parents = list(blobs)
    for i, path in enumerate(sources):
        layer = _load(path, i, names, dictionary)
        for blob in layer.blobs.values():
            add_blob(blobs, blob, path)
        if defaults is not None:
            check_alike(path, layer.defaults, defaults)
        defaults = layer.defaults
        # Whiteouts of the lowest layer hide nothing; they vanish too, unlike upstream's (8.3, 12).
        if tree is None:
            tree = drop_whiteouts(layer.tree, WhiteoutSpec.OCI)
        else:
            tree = apply_layer(tree, layer.tree, WhiteoutSpec.OCI)
    if tree is None or defaults is None:
        raise BuildError("no layers to merge")
    used = used_names(tree, parents)
    first = prefetch_rows(tree, prefetch)
    boot = write_bootstrap(tree, [blobs[name] for name in used], defaults, first)
    return Merged(used, defaults.compressor, write_bootstrap_to(target, boot))


def _load(path: Path, i: int, names: LayerNames, dictionary: Set[str]) -> Loaded:
    own: list[str] = []

    def rename(record: BlobRecord) -> BlobRecord:
        known = record.blob_id.rstrip(b"\0").decode()
        if known in dictionary:
            return standalone(record, path)
        own.append(known)
        if len(own) > 1:
            raise BuildError(
                f"{path}: {len(own)} blobs that are not in the chunk dictionary; a layer brings at"
                " most one: give the --chunk-dict that it was built against"
            )
        return _named(record, path, i, names)

    return load(path, rename)


def _named(record: BlobRecord, path: Path, i: int, names: LayerNames) -> BlobRecord:
    """The record under the name by which the layer will be fetched."""
    features = BlobFeatures(record.features)
    inline = bool(features & BlobFeatures.INLINED_FS_META)
    separate = bool(features & BlobFeatures.SEPARATE)
    digest = names.blob_digests[i] if names.blob_digests else None
    meta = digest or file_id(path)
    if names.original_blob_ids:
        data: str | None = names.original_blob_ids[i]
    elif separate:
        data = None  # its own id is right already; upstream would overwrite it (format.md 8.3, 2)
    else:
        data = digest or (meta if inline else None)
    features &= ~BlobFeatures.INLINED_FS_META
    record = replace(record, features=int(features))
    if data is not None:
        record = with_id(record, data, path)
    if separate:
        if digest or inline:
            record = replace(record, blob_meta_digest=sha256_of_name(meta, path))
        if names.blob_sizes:
            record = replace(record, blob_meta_size=names.blob_sizes[i])
    elif names.blob_sizes:
        record = replace(record, compressed_size=names.blob_sizes[i])
    if names.toc_digests:
        record = replace(record, blob_toc_digest=sha256_of_name(names.toc_digests[i], path))
    if names.toc_sizes:
        record = replace(record, blob_toc_size=names.toc_sizes[i])
    return record
