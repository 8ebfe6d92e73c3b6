"""What changed from one image to another, and what a node that has the first must fetch.

Data are compared by chunk digests, so nothing is read but the two bootstraps,
and chunk maps where chunks are not stored alone (batch, zran).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from rafs_v6.errors import shown
from rafs_v6.format.erofs import BlobFeatures, ChunkRecord
from rafs_v6.reader.bootstrap import Bootstrap
from rafs_v6.reader.image import Image
from rafs_v6.reader.inode import ChunkRef, Inode
from rafs_v6.tools.records import ChunkKey, records_by_chunk
from rafs_v6.values import dataclass

_SHARED_UNITS = BlobFeatures.BATCH | BlobFeatures.ZRAN
_Content = tuple[tuple[object, ...], ...]


@dataclass(frozen=True, slots=True)
class Change:
    """``attributes``: name to (before, after), for what differs."""

    path: bytes
    attributes: dict[str, tuple[object, object]]


@dataclass(frozen=True, slots=True)
class Fetch:
    """Compressed bytes.  ``new``: of chunks that the first image does not have, None when only the
    chunk maps could tell; ``all``: of everything the second image uses."""

    chunks: int
    new_chunks: int
    all_bytes: int | None
    new_bytes: int | None


@dataclass(frozen=True, slots=True)
class Difference:
    """Paths in the order of their images.  ``unsure``: files of equal size whose data cannot be
    compared, since the images do not use the same chunk size and digester."""

    added: list[bytes]
    removed: list[bytes]
    changed: list[Change]
    unsure: list[bytes]
    fetch: Fetch


def diff(before: Image, after: Image, *, with_maps: bool) -> Difference:
    """``with_maps``: the blobs of ``after`` can be read; its chunk maps are loaded when needed."""
    a, b = _Side(before.bootstrap), _Side(after.bootstrap)
    old = dict(before.walk())
    added, changed, unsure = [], [], []
    for path, inode in after.walk():
        was = old.pop(path, None)
        if was is None:
            added.append(path)
            continue
        attributes = _attributes(a.bootstrap, was, b.bootstrap, inode)
        if was.is_reg and inode.is_reg and was.size == inode.size and inode.size:
            same = _same_data(a, was, b, inode)
            if same is None:
                unsure.append(path)
            elif not same:
                attributes["data"] = "old", "new"
        if attributes:
            changed.append(Change(path, attributes))
    return Difference(added, list(old), changed, unsure, _fetch(a, b, after, with_maps))


class _Side:
    """A bootstrap with what identifies its chunks."""

    def __init__(self, bootstrap: Bootstrap) -> None:
        self.bootstrap = bootstrap
        self.records = records_by_chunk(bootstrap)

    def record(self, ref: ChunkRef) -> ChunkRecord | None:
        return self.records.get((ref.blob_index, ref.chunk_index))

    def by_digest(self, inode: Inode) -> _Content | None:
        """Digesters, digests and sizes; None when a chunk has none."""
        out: list[tuple[object, ...]] = []
        for ref in self.bootstrap.chunks(inode):
            record = self.record(ref)
            if record is None or not any(record.digest):
                return None
            digester = self.bootstrap.blobs[ref.blob_index].digester
            out.append((digester, record.digest, ref.size))
        return tuple(out)

    def by_place(self, inode: Inode) -> _Content:
        return tuple(
            (self.bootstrap.blobs[ref.blob_index].blob_id, ref.flat_off, ref.size)
            for ref in self.bootstrap.chunks(inode)
        )


def _same_data(a: _Side, was: Inode, b: _Side, now: Inode) -> bool | None:
    if a.bootstrap.chunk_size != b.bootstrap.chunk_size:
        return None
    if a.by_place(was) == b.by_place(now):
        return True
    old, new = a.by_digest(was), b.by_digest(now)
    if old is None or new is None or [c[0] for c in old] != [c[0] for c in new]:
        return None
    return old == new


def _attributes(
    a: Bootstrap, was: Inode, b: Bootstrap, now: Inode
) -> dict[str, tuple[object, object]]:
    old, new = _values(a, was), _values(b, now)
    return {k: (old.get(k), new.get(k)) for k in {**old, **new} if old.get(k) != new.get(k)}


def _values(bootstrap: Bootstrap, inode: Inode) -> dict[str, object]:
    out: dict[str, object] = {
        "type": stat.filemode(inode.mode)[0],
        "mode": f"{stat.S_IMODE(inode.mode):04o}",
        "uid": inode.uid,
        "gid": inode.gid,
        "mtime": f"{inode.mtime}.{inode.mtime_nsec:09}",
    }
    if inode.is_reg:
        out |= {"size": inode.size, "links": inode.nlink}
    elif inode.is_symlink:
        out["target"] = shown(bootstrap.read_link(inode))
    elif inode.rdev:
        out["device"] = f"{os.major(inode.rdev)}:{os.minor(inode.rdev)}"
    for name, value in bootstrap.xattrs(inode).items():
        out[f"xattr {shown(name)}"] = value.hex()
    return out


# -- what is to be fetched -------------------------------------------------------------------------


def _fetch(a: _Side, b: _Side, after: Image, with_maps: bool) -> Fetch:
    have_places = {(a.bootstrap.blobs[blob].blob_id, chunk) for blob, chunk in _used(a.bootstrap)}
    have_digests = {
        (a.bootstrap.blobs[key[0]].digester, a.records[key].digest)
        for key in _used(a.bootstrap) if key in a.records
    }  # fmt: skip
    used = _used(b.bootstrap)
    new = set()
    for key in used:
        info, record = b.bootstrap.blobs[key[0]], b.records.get(key)
        known = (info.blob_id, key[1]) in have_places or (
            record is not None and (info.digester, record.digest) in have_digests
        )
        if not known:
            new.add(key)
    every = _compressed_bytes(b, used, after, with_maps)
    return Fetch(len(used), len(new), every, _compressed_bytes(b, new, after, with_maps))


def _used(bootstrap: Bootstrap) -> set[ChunkKey]:
    """The chunks that files refer to; in tarfs, where chunks have no numbers, their addresses."""
    out: set[ChunkKey] = set()
    seen: set[int] = set()
    for _, inode in bootstrap.walk():
        if inode.is_reg and inode.nid not in seen:
            seen.add(inode.nid)
            for ref in bootstrap.chunks(inode):
                tarfs = bootstrap.blobs[ref.blob_index].is_tarfs
                out.add((ref.blob_index, ref.flat_off if tarfs else ref.chunk_index))
    return out


def _compressed_bytes(
    side: _Side, chunks: set[ChunkKey], image: Image, with_maps: bool
) -> int | None:
    total = 0
    units: set[ChunkKey] = set()
    for key in chunks:
        info = side.bootstrap.blobs[key[0]]
        if info.is_tarfs or info.features & _SHARED_UNITS:
            if not with_maps:
                return None
            units.update(_units(image, key, tarfs=info.is_tarfs))
        elif key in side.records:
            total += side.records[key].compressed_size
        else:
            return None
    return total + sum(image.chunk_map(blob).unit(unit).clen for blob, unit in units)


def _units(image: Image, key: ChunkKey, *, tarfs: bool) -> Iterator[ChunkKey]:
    chunks = image.chunk_map(key[0])
    if tarfs:
        # Windows of the tar: a file's data may begin in one and end in the next.
        size = image.bootstrap.chunk_size
        yield from ((key[0], unit) for unit in chunks.units_of(key[1], size))
    else:
        yield key[0], chunks.blob.chunks[key[1]].unit
