"""The image of a chunk dictionary: its bootstrap, and the blobs that this refers to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nydus_fscache.convert.bootstrap_layer import Entry, store_layer
from nydus_fscache.convert.documents import (
    BOOTSTRAP_HISTORY,
    described,
    go_json,
    image_config,
    manifest,
    parse_config,
)
from nydus_fscache.convert.move import Mover
from nydus_fscache.errors import BadImage
from nydus_fscache.registry import media
from nydus_fscache.registry.manifest import descriptor, nydus_image
from nydus_fscache.registry.store import BlobStore, Document, ImageStore, put_blob, read_blob


@dataclass(frozen=True, slots=True)
class Related:
    """One image that the dictionary was made of."""

    store: ImageStore
    document: Document
    boot: Path


def dictionary_image(
    related: Sequence[Related], target: ImageStore, boot: Path, blobs: Sequence[str],
    mover_of: Callable[[BlobStore], Mover],
) -> Document:  # fmt: skip
    """The manifest; all below it is in ``target`` then.  Platform: the first image's."""
    layers: list[dict[str, Any]] = []
    for blob_id in blobs:
        for one in related:
            found = {b.hex: b for b in nydus_image(one.document.json, "an image").blobs}
            if blob_id in found:
                blob = found[blob_id]
                mover_of(one.store).one(blob)
                layers.append(
                    described(media.NYDUS_BLOB, blob.digest, blob.size, {media.BLOB: "true"})
                )
                break
        else:
            raise BadImage(f"blob {blob_id} is in none of the images", hint="push them again")
    layer = store_layer(
        target, [Entry("image", 0o755), Entry("image/image.boot", 0o444, boot)]
    )
    first = related[0]
    docker = first.document.media_type in media.DOCKER
    config = parse_config(read_blob(first.store, descriptor(first.document.json["config"])))
    diff_ids = [*(str(one["digest"]) for one in layers), layer.diff_id]
    history = [*({"created_by": "Nydus Converter"} for _ in layers), BOOTSTRAP_HISTORY]
    body = go_json(image_config(config, diff_ids, history), indent=False)
    last = described(
        media.DOCKER_LAYER_GZIP if docker else media.OCI_LAYER_GZIP, layer.digest, layer.size,
        {media.BOOTSTRAP: "true", media.FS_VERSION: "6"},
    )  # fmt: skip
    place = described(
        media.DOCKER_CONFIG if docker else media.OCI_CONFIG, put_blob(target, body), len(body)
    )
    return manifest(first.document.media_type, place, [*layers, last], {media.FS_VERSION: "6"})
