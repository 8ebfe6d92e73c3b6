"""Bootstraps as trees with their blobs: layers, parents, dictionaries (format.md 4.2, 4.3)."""

from __future__ import annotations

import string
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rafs_v6.errors import ImageError
from rafs_v6.format.blob_table import is_inlined_id
from rafs_v6.format.erofs import (
    EROFS_BLOCK,
    EROFS_SLOTSIZE,
    SUPER_FLAGS_COMPRESSION,
    SUPER_FLAGS_HASH,
    BlobFeatures,
    BlobRecord,
    SuperFlags,
)
from rafs_v6.reader.bootstrap import Bootstrap
from rafs_v6.reader.inode import Inode
from rafs_v6.reader.locate import locate_bootstrap
from rafs_v6.validate import validate
from rafs_v6.values import dataclass, replace
from rafs_v6.writer.bootstrap import BlobEntry, Defaults
from rafs_v6.writer.chunk_records import ChunkRecords
from rafs_v6.writer.errors import BuildError, UnlikeLayers
from rafs_v6.writer.tree import IMPLIED, NONE, ROOT, Node, Tree

_ID_LEN = _SHA256_LEN = 64
_EXTENDED_SIZE, _FLAGS_AT = 64, 48  # of an extended inode, and i_reserved2 in it


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image that was built before; ``tree`` may be changed, the rest is as it was read."""

    tree: Tree
    blobs: Mapping[str, BlobEntry]
    defaults: Defaults


def load(path: Path, rename: Callable[[BlobRecord], BlobRecord] | None = None) -> Loaded:
    """The image at ``path``: a bootstrap, or a blob with one inside.

    ``rename`` gives each blob record the name under which the blob will be
    fetched; without it only a record that stands for its own file gets one.
    Raises ``BuildError`` for what cannot be built upon (tarfs), ``ImageError`` for damage.
    """
    boot = open_bootstrap(path)
    blobs: dict[str, BlobEntry] = {}
    names = []
    for blob in load_blobs(boot, path, rename):
        add_blob(blobs, blob, path)
        names.append(blob.name)
    flags = boot.tables.flags
    defaults = Defaults(
        boot.chunk_size,
        next(v for k, v in SUPER_FLAGS_COMPRESSION.items() if flags & k),
        next(v for k, v in SUPER_FLAGS_HASH.items() if flags & k),
        explicit_uid_gid=bool(flags & SuperFlags.EXPLICIT_UID_GID),
    )
    return Loaded(_tree(boot, names), blobs, defaults)


def open_bootstrap(path: Path, *, tables_only: bool = False) -> Bootstrap:
    """A validated bootstrap, or the one inside a blob with inline metadata.

    ``tables_only``: its tree is not looked at.  Dictionaries of the original have an odd one.
    """
    try:
        boot, _ = locate_bootstrap(path)
    except ImageError as e:
        raise BuildError(f"{path}: {e}") from e
    if boot.tables.flags & SuperFlags.TARFS_MODE:
        raise BuildError(f"{path}: a tarfs image stands alone, nothing goes over it")
    if not tables_only:
        validate(boot)
    return boot


def load_blobs(
    boot: Bootstrap, path: Path, rename: Callable[[BlobRecord], BlobRecord] | None = None
) -> list[BlobEntry]:
    """The blobs of ``boot`` with their chunk records, in the order of the blob table."""
    per_blob = [ChunkRecords() for _ in boot.blobs]
    for _, chunk in boot.chunk_records():
        if chunk.blob_index < len(per_blob):
            per_blob[chunk.blob_index].append(chunk)
    blobs = []
    for info, chunks in zip(boot.blobs, per_blob, strict=True):
        offset = boot.tables.ext.blob_table_offset + BlobRecord.SIZE * info.index
        record = BlobRecord.unpack(boot.data, offset)
        record = (rename or (lambda r: standalone(r, path)))(record)
        for chunk in chunks:
            end = chunk.uncompressed_offset + chunk.uncompressed_size
            if (
                chunk.index >= record.chunk_count
                or chunk.uncompressed_offset % EROFS_BLOCK
                or end > record.uncompressed_size
            ):
                raise BuildError(f"{path}: chunk {chunk.index} lies outside blob {info.index}")
        blobs.append(BlobEntry(record.blob_id.rstrip(b"\0").decode(), record, chunks))
    return blobs


def add_blob(blobs: dict[str, BlobEntry], blob: BlobEntry, path: Path) -> None:
    """Add a blob of ``path``, which may be known: then what each says of its chunks is joined.

    Raises ``BuildError`` when it is another blob under the same name.
    """
    have = blobs.setdefault(blob.name, blob)
    if have is blob:
        return
    known = {c.index: (c.digest, c.uncompressed_offset) for c in have.chunks}
    if (have.record.uncompressed_size, have.record.chunk_count) != (
        blob.record.uncompressed_size, blob.record.chunk_count
    ) or any(
        known.get(c.index) not in (None, (c.digest, c.uncompressed_offset)) for c in blob.chunks
    ):  # fmt: skip
        raise BuildError(
            f"{path}: blob {blob.name} is another one than that of a lower layer; name the layers"
            " by --blob-digests, or their files by blob id, and use one --digester"
        )
    # An image may only have the records of chunks that it uses, as upstream's do.
    more = [c for c in blob.chunks if c.index not in known]
    if more:
        blobs[blob.name] = replace(have, chunks=ChunkRecords([*have.chunks, *more]))


def standalone(record: BlobRecord, path: Path) -> BlobRecord:
    """The record for use outside its own file, whose name says what it could not know (2.9)."""
    features = BlobFeatures(record.features)
    inline = bool(features & BlobFeatures.INLINED_FS_META)
    own = is_inlined_id(record.blob_id.decode("utf-8", "replace"))
    record = replace(record, features=int(features & ~BlobFeatures.INLINED_FS_META))
    if inline and features & BlobFeatures.SEPARATE and not own:
        # The chunk map is in the file, not in the tar that the record names.
        record = replace(record, blob_meta_digest=sha256_of_name(file_id(path), path))
    return with_id(record, file_id(path), path) if own else record


def file_id(path: Path) -> str:
    """The blob id that a file's name stands for (format.md 4.3)."""
    return path.name.split(".", 1)[0]


def sha256_of_name(text: str, path: Path) -> bytes:
    """``text`` as a digest; ``BuildError`` when it is not one."""
    if len(text) != _SHA256_LEN or not set(text) <= set(string.hexdigits):
        raise BuildError(
            f"{path}: {text!r} is not a sha256; name the file by the digest of its content"
        )
    return bytes.fromhex(text)


def with_id(record: BlobRecord, name: str, path: Path) -> BlobRecord:
    raw = name.encode()
    if not 0 < len(raw) <= _ID_LEN or b"/" in raw:
        raise BuildError(f"{path}: {name!r} is not a blob id")
    return replace(record, blob_id=raw.ljust(_ID_LEN, b"\0"))


def check_alike(path: Path, upper: Defaults, lower: Defaults) -> None:
    """May ``upper``, read from ``path``, share a bootstrap with ``lower``?"""
    if upper.chunk_size != lower.chunk_size:
        raise UnlikeLayers(
            f"{path}: chunks of {upper.chunk_size:#x} bytes over a lower layer with"
            f" {lower.chunk_size:#x}; build all layers with the same --chunk-size"
        )
    if upper.explicit_uid_gid != lower.explicit_uid_gid:
        raise UnlikeLayers(
            f"{path}: one layer was built with --repeatable, which drops owners, and one without"
        )


def _tree(boot: Bootstrap, blobs: Sequence[str]) -> Tree:
    """The tree of a validated bootstrap."""
    tree = Tree(boot.chunk_size)
    rows = array("I", b"\xff" * 4 * (len(boot.data) // EROFS_SLOTSIZE + 1))  # by nid

    def add(parent: int, name: bytes, inode: Inode) -> int:
        node = Node(
            inode.mode, inode.uid, inode.gid, inode.mtime, inode.mtime_nsec,
            0 if inode.is_dir else inode.size, inode.rdev, xattrs=boot.xattrs(inode),
        )  # fmt: skip
        if inode.is_symlink:
            node.target = boot.read_link(inode)
        flags = boot.data[inode.offset + _FLAGS_AT] if inode.body_size == _EXTENDED_SIZE else 0
        row = tree.add(parent, name, node, flags & IMPLIED if inode.is_dir else 0)
        if inode.is_reg:
            tree.at[row] = len(tree.refs)
            for c in boot.chunks(inode):
                tree.refs.append(
                    tree.locations.add(blobs[c.blob_index], c.chunk_index, c.flat_off)
                )  # fmt: skip
        return row

    pending = [(boot.root, add(ROOT, b"", boot.root))]
    while pending:
        inode, parent = pending.pop()
        directories = []
        for entry in boot.read_dir(inode):
            if entry.name in (b".", b".."):
                continue
            if rows[entry.nid] != NONE:
                tree.add_link(parent, entry.name, rows[entry.nid])
                continue
            below = boot.inode(entry.nid)
            row = rows[entry.nid] = add(parent, entry.name, below)
            if below.is_dir:
                directories.append((below, row))
        pending += reversed(directories)
    return tree
