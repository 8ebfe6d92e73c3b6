"""Which units of an image to load before they are asked for, and in which order.

Sources: the bootstrap's prefetch table, paths, an access trace, the whole image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import rafs_v6
from nydus_fscache.errors import UsageError
from nydus_fscache.fetch.cache_object import CacheObject
from nydus_fscache.fetch.trace import Access

POLICIES = ("auto", "none", "table", "trace", "all")

# Units in the order in which to load them, a list or a range for each stretch of one object.
Wanted = Sequence[tuple[CacheObject, Sequence[int]]]


def by_blob(objects: Iterable[CacheObject]) -> dict[str, CacheObject]:
    return {obj.source.blob_id: obj for obj in objects}


def select(
    policy: str,
    paths: Sequence[str],
    path: Path,
    objects: Sequence[CacheObject],
    trace: Sequence[Access],
) -> tuple[str, Wanted]:
    """What ``paths`` or else ``policy`` (of ``POLICIES``) mean for the image at ``path``.

    The kind is "paths", "none", "table", "trace" or "all".
    """
    if paths:
        return "paths", from_paths(path, paths, objects)
    if policy == "all":
        return "all", from_all(objects)
    if policy in ("auto", "trace"):
        wanted = from_trace(trace, objects)
        if wanted or policy == "trace":
            return "trace", wanted
    if policy in ("auto", "table"):
        return "table", from_table(path, objects)
    return "none", []


def from_trace(accesses: Sequence[Access], objects: Sequence[CacheObject]) -> Wanted:
    known = by_blob(objects)
    return _stretches(
        (known[a.blob], a.unit)
        for a in accesses
        if a.blob in known and 0 <= a.unit < known[a.blob].chunks.nunits
    )


def _stretches(units: Iterable[tuple[CacheObject, int]]) -> Wanted:
    found: list[tuple[CacheObject, list[int]]] = []
    for obj, unit in units:
        if not found or found[-1][0] is not obj:
            found.append((obj, []))
        found[-1][1].append(unit)
    return found


def from_all(objects: Sequence[CacheObject]) -> Wanted:
    return [(obj, range(obj.chunks.nunits)) for obj in objects]


def from_table(path: Path, objects: Sequence[CacheObject]) -> Wanted:
    """Files of the prefetch table; a directory stands for all below it."""
    bootstrap = rafs_v6.Bootstrap.from_file(path)
    inodes = (bootstrap.inode(nid) for nid in bootstrap.prefetch_nids if nid)
    return of_inodes(bootstrap, inodes, objects)


def from_paths(path: Path, paths: Sequence[str], objects: Sequence[CacheObject]) -> Wanted:
    bootstrap = rafs_v6.Bootstrap.from_file(path)
    inodes = []
    for name in paths:
        try:
            inodes.append(bootstrap.lookup(name))
        except (FileNotFoundError, NotADirectoryError) as e:
            raise UsageError(f"{name} is not in the image", hint="see nydus-fscache ls") from e
    return of_inodes(bootstrap, inodes, objects)


def of_inodes(
    bootstrap: rafs_v6.Bootstrap,
    inodes: Iterable[rafs_v6.Inode],
    objects: Sequence[CacheObject],
) -> Wanted:
    known = by_blob(objects)
    blobs = [known.get(info.blob_id) for info in bootstrap.blobs]
    found: dict[tuple[CacheObject, int], None] = {}
    for inode in inodes:
        for file in _files(bootstrap, inode):
            for ref in bootstrap.chunks(file):
                obj = blobs[ref.blob_index]
                if obj is not None and ref.size:
                    for unit in obj.chunks.units_of(ref.flat_off, ref.size):
                        found[obj, unit] = None
    return _stretches(found)


def _files(bootstrap: rafs_v6.Bootstrap, top: rafs_v6.Inode) -> Iterator[rafs_v6.Inode]:
    seen: set[int] = set()
    stack = [top]
    while stack:
        inode = stack.pop()
        if inode.is_reg:
            yield inode
        elif inode.is_dir and inode.nid not in seen:
            seen.add(inode.nid)
            entries = [e for e in bootstrap.read_dir(inode) if e.name not in (b".", b"..")]
            stack.extend(bootstrap.inode(e.nid) for e in reversed(entries))
