"""Bootstraps of layers become the bootstrap of an image (sheet 4.3)."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rafs_v6.bootstrap import Bootstrap, Inode
from rafs_v6.build.blobfile import write_atomically
from rafs_v6.build.bootstrap import BlobEntry, Defaults, write_bootstrap
from rafs_v6.build.errors import BuildError
from rafs_v6.build.overlay import WhiteoutSpec, apply_layer
from rafs_v6.build.prefetch import prefetch_nodes
from rafs_v6.build.tree import Chunk, Node, traverse
from rafs_v6.erofs import (
    CHUNK_RECORD_SIZE,
    SUPER_FLAGS_COMPRESSION,
    SUPER_FLAGS_HASH,
    BlobFeatures,
    BlobRecord,
    ChunkRecord,
    SuperFlags,
)
from rafs_v6.errors import ImageError
from rafs_v6.toc import find_bootstrap

_ID_LEN = 64


@dataclass(frozen=True, slots=True)
class LayerNames:
    """What a registry knows of the layers; each list is empty or has one entry a layer."""

    blob_digests: Sequence[str] = ()
    original_blob_ids: Sequence[str] = ()
    blob_sizes: Sequence[int] = ()
    toc_digests: Sequence[str] = ()
    toc_sizes: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class _Layer:
    root: Node
    blobs: dict[str, BlobEntry]
    defaults: Defaults


def merge(
    sources: Sequence[Path], names: LayerNames, target: Path, prefetch: Sequence[bytes] = ()
) -> list[str]:
    """Merge layers, lowest first, into ``target``; the ids of the blobs that are still used."""
    for values in (
        names.blob_digests, names.original_blob_ids, names.blob_sizes, names.toc_digests,
        names.toc_sizes,
    ):  # fmt: skip
        if values and len(values) != len(sources):
            raise BuildError(f"{len(values)} values for {len(sources)} layers")
    blobs: dict[str, BlobEntry] = {}
    root: Node | None = None
    defaults: Defaults | None = None
    for i, path in enumerate(sources):
        layer = _load(path, i, names)
        for name, blob in layer.blobs.items():
            # Two layers that are the same are one blob; the same name for two blobs is corruption.
            if name in blobs and blobs[name].record.uncompressed_size != (
                blob.record.uncompressed_size
            ):
                raise BuildError(
                    f"{path}: blob {name} is another one than in a lower layer; name the layers"
                    " by --blob-digests, or their files by blob id"
                )
            blobs.setdefault(name, blob)
        if defaults is not None and (
            defaults.chunk_size != layer.defaults.chunk_size
            or defaults.explicit_uid_gid != layer.defaults.explicit_uid_gid
        ):
            raise BuildError(f"{path}: chunk size or ownership differ from the lower layers")
        defaults = layer.defaults
        # Whiteouts of the lowest layer hide nothing; they vanish too, unlike upstream's (8.3, 12).
        below = root if root is not None else Node(layer.root.mode)
        root = apply_layer(below, layer.root, WhiteoutSpec.OCI)
    if root is None or defaults is None:
        raise BuildError("no layers to merge")
    used: dict[str, BlobEntry] = {}
    for _, node in traverse(root):
        for chunk in node.chunks:
            used.setdefault(chunk.blob, blobs[chunk.blob])
    first = prefetch_nodes(root, prefetch)
    write_atomically(target, write_bootstrap(root, list(used.values()), defaults, first))
    return list(used)


def _load(path: Path, i: int, names: LayerNames) -> _Layer:
    boot = _open(path)
    boot.validate()
    tables = boot.tables
    flags = SuperFlags(tables.ext.flags)
    if flags & SuperFlags.TARFS_MODE:
        raise BuildError(f"{path}: tarfs layers are not merged")
    defaults = Defaults(
        boot.chunk_size,
        next(v for k, v in SUPER_FLAGS_COMPRESSION.items() if flags & k),
        next(v for k, v in SUPER_FLAGS_HASH.items() if flags & k),
        explicit_uid_gid=bool(flags & SuperFlags.EXPLICIT_UID_GID),
    )
    per_blob: list[list[ChunkRecord]] = [[] for _ in boot.blobs]
    for at in range(0, len(boot.chunk_table), CHUNK_RECORD_SIZE):
        record = ChunkRecord.unpack(boot.chunk_table, at)
        if record.blob_index < len(per_blob):
            per_blob[record.blob_index].append(record)
    if len(boot.blobs) > 1:
        raise BuildError(f"{path}: {len(boot.blobs)} blobs; a layer brings at most one")
    found: dict[str, BlobEntry] = {}
    keys: list[str] = []
    for index in range(len(boot.blobs)):
        offset = tables.ext.blob_table_offset + BlobRecord.SIZE * index
        named = _named(BlobRecord.unpack(boot.data, offset), path, i, names)
        keys.append(named.blob_id.rstrip(b"\0").decode())
        found[keys[-1]] = BlobEntry(keys[-1], named, per_blob[index])
    return _Layer(_tree(boot, keys), found, defaults)


def _open(path: Path) -> Bootstrap:
    """A bootstrap, or the one inside a blob with inline metadata."""
    with path.open("rb") as f:
        f.seek(1024)
        if f.read(4) == b"\xe2\xe1\xf5\xe0":
            return Bootstrap.from_file(path)
        size = f.seek(0, 2)

        def read_at(_: str, offset: int, length: int) -> bytes:
            f.seek(offset)
            return f.read(length)

        try:
            return Bootstrap.from_bytes(find_bootstrap(read_at, path.name, size))
        except ImageError as e:
            raise BuildError(f"{path}: {e}") from e


def _named(record: BlobRecord, path: Path, i: int, names: LayerNames) -> BlobRecord:
    """The record under the name by which the layer will be fetched."""
    features = BlobFeatures(record.features)
    inline = bool(features & BlobFeatures.INLINED_FS_META)
    separate = bool(features & BlobFeatures.SEPARATE)
    digest = names.blob_digests[i] if names.blob_digests else None
    meta = digest or path.name.split(".", 1)[0]
    if names.original_blob_ids:
        data: str | None = names.original_blob_ids[i]
    elif separate:
        data = None  # its own id is right already; upstream would overwrite it (sheet 8.3, 2)
    else:
        data = digest or (meta if inline else None)
    features &= ~BlobFeatures.INLINED_FS_META
    record = replace(record, features=int(features))
    if data is not None:
        record = replace(record, blob_id=_blob_id(data, path).ljust(_ID_LEN, b"\0"))
    if separate:
        if digest or inline:
            record = replace(record, blob_meta_digest=_sha256(meta, path))
        if names.blob_sizes:
            record = replace(record, blob_meta_size=names.blob_sizes[i])
    elif names.blob_sizes:
        record = replace(record, compressed_size=names.blob_sizes[i])
    if names.toc_digests:
        record = replace(record, blob_toc_digest=_sha256(names.toc_digests[i], path))
    if names.toc_sizes:
        record = replace(record, blob_toc_size=names.toc_sizes[i])
    return record


def _blob_id(name: str, path: Path) -> bytes:
    raw = name.encode()
    if not 0 < len(raw) <= _ID_LEN or b"/" in raw:
        raise BuildError(f"{path}: {name!r} is no blob id")
    return raw


def _sha256(text: str, path: Path) -> bytes:
    if len(text) != _ID_LEN or not set(text) <= set(string.hexdigits):
        raise BuildError(f"{path}: {text!r} is no sha256")
    return bytes.fromhex(text)


def _tree(boot: Bootstrap, blobs: Sequence[str]) -> Node:
    """The tree of a validated bootstrap."""
    by_nid: dict[int, Node] = {}

    def node_of(inode: Inode) -> Node:
        node = by_nid.get(inode.nid)
        if node is None:
            node = by_nid[inode.nid] = Node(
                inode.mode, inode.uid, inode.gid, inode.mtime, inode.mtime_nsec,
                0 if inode.is_dir else inode.size, inode.rdev, xattrs=boot.xattrs(inode),
            )  # fmt: skip
            if inode.is_symlink:
                node.target = boot.read_link(inode)
            elif inode.is_reg:
                node.chunks = [
                    Chunk(blobs[c.blob_index], c.chunk_index, c.flat_off, c.size)
                    for c in boot.chunks(inode)
                ]
        return node

    root = node_of(boot.root)
    pending = [(boot.root, root)]
    while pending:
        inode, node = pending.pop()
        for entry in boot.read_dir(inode):
            if entry.name in (b".", b".."):
                continue
            below = boot.inode(entry.nid)
            child = node.children[entry.name] = node_of(below)
            if child.is_dir:
                pending.append((below, child))
    return root
