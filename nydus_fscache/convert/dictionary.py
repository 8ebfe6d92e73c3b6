"""The image of a chunk dictionary: its bootstrap, and the blobs that this refers to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nydus_fscache.convert.attach import blob_in
from nydus_fscache.convert.bootstrap_layer import Entry, store_layer
from nydus_fscache.convert.documents import (
    BOOTSTRAP_HISTORY,
    described,
    manifest,
    parse_config,
    store_config,
)
from nydus_fscache.convert.move import Mover
from nydus_fscache.convert.readers import BackendBlobs
from nydus_fscache.errors import BadImage
from nydus_fscache.registry import media
from nydus_fscache.registry.manifest import Descriptor, config_of, nydus_image
from nydus_fscache.registry.store import BlobStore, Document, ImageStore, read_blob
from rafs_v6.values import dataclass


@dataclass(frozen=True, slots=True)
class Related:
    """One image that the dictionary was made of."""

    store: ImageStore
    document: Document
    boot: Path


def _places(related: Sequence[Related]) -> dict[str, tuple[BlobStore, Descriptor]]:
    """Of blobs that are layers; the first image that has one counts."""
    found: dict[str, tuple[BlobStore, Descriptor]] = {}
    for one in related:
        for blob in nydus_image(one.document.json, "an image").blobs:
            found.setdefault(blob.hex, (one.store, blob))
    return found


def _in_backend(blob_id: str, backend: BackendBlobs | None) -> tuple[BlobStore, Descriptor]:
    if backend is None:
        raise BadImage(
            f"blob {blob_id} is in none of the images",
            hint="push them again, or say where their blobs are: --backend-type",
        )
    return backend, blob_in(backend, blob_id)


def dictionary_image(
    related: Sequence[Related], target: ImageStore, boot: Path, blobs: Sequence[str],
    mover_of: Callable[[BlobStore], Mover], backend: BackendBlobs | None = None,
) -> Document:  # fmt: skip
    """The manifest; all below it is in ``target`` then.  Platform: the first image's.

    ``backend``: where blobs are that are layers of none of the images.
    """
    layers: list[dict[str, Any]] = []
    places = _places(related)
    for blob_id in blobs:
        store, blob = places.get(blob_id) or _in_backend(blob_id, backend)
        mover_of(store).one(blob)
        layers.append(described(media.NYDUS_BLOB, blob.digest, blob.size, {media.BLOB: "true"}))
    first = related[0]
    entries = [Entry("image", 0o755), Entry("image/image.boot", 0o444, boot)]
    layer = mover_of(first.store).stored(lambda: store_layer(target, entries))
    docker = first.document.media_type in media.DOCKER
    config = parse_config(read_blob(first.store, config_of(first.document.json)))
    diff_ids = [*(str(one["digest"]) for one in layers), layer.diff_id]
    history = [*({"created_by": "Nydus Converter"} for _ in layers), BOOTSTRAP_HISTORY]
    last = described(
        media.DOCKER_LAYER_GZIP if docker else media.OCI_LAYER_GZIP, layer.digest, layer.size,
        {media.BOOTSTRAP: "true", media.FS_VERSION: "6"},
    )  # fmt: skip
    kind = media.DOCKER_CONFIG if docker else media.OCI_CONFIG
    place = store_config(target, kind, config, diff_ids, history)
    return manifest(first.document.media_type, place, [*layers, last], {media.FS_VERSION: "6"})
