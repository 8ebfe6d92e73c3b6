"""The build cache: which layer became which blob, in a manifest of its own.

The key is the layer and all that shapes the blob: blobs made with other options
are not taken.  A cache that cannot be read or written never fails a conversion.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

from nydus_fscache.convert.documents import described, manifest
from nydus_fscache.convert.journal import Blob
from nydus_fscache.convert.layer import Packed
from nydus_fscache.convert.move import mount, whole_if_refused
from nydus_fscache.errors import BackendError, BadImage
from nydus_fscache.registry import media
from nydus_fscache.registry.image_name import ImageName
from nydus_fscache.registry.manifest import Descriptor, descriptor, list_of
from nydus_fscache.registry.push import PartsRefused
from nydus_fscache.registry.store import BlobStore, ImageStore, copy_blob, put_blob
from rafs_v6.values import dataclass

log = logging.getLogger("converter")

KEY = f"{media.SNAPSHOT}nydus-fscache-key"  # ours: the digest of all options
_CONFIG = b"{}"


@dataclass(slots=True)
class Cache:
    """``records``: the layers of the cache's manifest, newest first.  ``key``: of the options.

    Records of the original have no key, so nothing says how their blobs were made: they miss.
    """

    store: ImageStore
    name: ImageName
    limit: int
    records: list[dict[str, Any]] = field(default_factory=list)
    key: str = ""
    hits: int = 0
    asked: int = 0

    def find(self, source: str) -> Blob | None:
        for record in self.records:
            notes = record.get("annotations") or {}
            if notes.get(media.SOURCE_DIGEST) == source and notes.get(KEY) == self.key:
                return Blob(str(record["digest"]), int(record["size"]))
        return None


class Finder:
    """Blobs of a cache, brought to where they are needed.  Thread-safe enough: counts are hints."""

    def __init__(self, cache: Cache | None, target: BlobStore) -> None:
        self._cache, self._target = cache, target

    def find(self, layer: Descriptor) -> Blob | None:
        cache = self._cache
        if cache is None:
            return None
        cache.asked += 1
        blob = cache.find(layer.digest)
        if blob is None:
            return None
        try:
            if not self._bring(cache, blob):
                return None
        except (BackendError, BadImage) as e:
            log.warning("a blob of cache %s is left out: %s", cache.name, e)
            return None
        cache.hits += 1
        return blob

    def _bring(self, cache: Cache, blob: Blob) -> bool:
        if self._target.has_blob(blob.digest) == blob.size:
            return True
        if cache.store.has_blob(blob.digest) != blob.size:
            return False
        if not mount(cache.store, self._target, blob.digest):
            whole = Descriptor(media.NYDUS_BLOB, blob.digest, blob.size, {})
            stream = cache.store.open_blob(blob.digest, blob.size)
            copy_blob(stream, self._target.writer(), whole)
        return True


def pull(store: ImageStore, name: ImageName, limit: int) -> Cache:
    """An empty cache when there is none, or none that can be understood."""
    cache = Cache(store, name, limit)
    try:
        document = store.manifest(name.reference.manifest)
        if document.media_type in media.INDEXES:
            for entry in list_of(document.json, "manifests"):
                cache.records += _records(store.manifest(descriptor(entry).digest).json)
        else:
            cache.records = _records(document.json)
    except BackendError as e:
        if e.status == 404:
            log.info("cache %s not found", name)
        else:
            log.warning("cache %s is left out: %s", name, e)
        return cache
    except BadImage as e:
        log.warning("cache %s is left out: %s", name, e)
        return cache
    log.info("pulled cache %s", name)
    return cache


def _records(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for entry in list_of(document, "layers"):
        place = descriptor(entry)
        if place.annotations.get(media.SOURCE_DIGEST):
            found.append(described(place.media_type, place.digest, place.size, place.annotations))
    return found


def push(cache: Cache, source: BlobStore, layers: Sequence[Packed]) -> None:
    """This run's layers first, without doubles, at most ``limit``."""
    mine = [
        described(
            media.NYDUS_BLOB, p.blob.digest, p.blob.size,
            {
                media.BLOB: "true", media.SOURCE_DIGEST: p.source.digest,
                media.UNCOMPRESSED: p.blob.digest, KEY: cache.key,
            },
        )
        for p in layers
    ]  # fmt: skip
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for record in [*mine, *cache.records]:
        notes = record["annotations"]
        merged.setdefault((notes[media.SOURCE_DIGEST], notes.get(KEY, "")), record)
    kept = []
    for record in list(merged.values())[: cache.limit]:
        if _present(cache, source, record):
            kept.append(record)
    document = manifest(
        media.OCI_MANIFEST,
        described(media.OCI_CONFIG, put_blob(cache.store, _CONFIG), len(_CONFIG)),
        kept, {media.CACHE_VERSION: ""},
    )  # fmt: skip
    cache.store.put_manifest(cache.name.reference.manifest, document)


def _present(cache: Cache, source: BlobStore, record: Mapping[str, Any]) -> bool:
    """The blob is in the cache's repository, or comes there now."""
    blob = Descriptor(media.NYDUS_BLOB, str(record["digest"]), int(record["size"]), {})
    if cache.store.has_blob(blob.digest) is not None or mount(source, cache.store, blob.digest):
        return True
    if source.has_blob(blob.digest) is None:
        return False
    with contextlib.suppress(PartsRefused), whole_if_refused(cache.store, None):
        copy_blob(source.open_blob(blob.digest, blob.size), cache.store.writer(), blob)
        return True
    copy_blob(source.open_blob(blob.digest, blob.size), cache.store.writer(), blob)
    return True
