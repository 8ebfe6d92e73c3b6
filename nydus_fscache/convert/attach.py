"""An image whose blobs are in a backend gets them as layers, in a registry like any other."""

from __future__ import annotations

import logging
from typing import Any

import rafs_v6
from nydus_fscache.convert.documents import (
    annotations_of,
    described,
    diff_ids_of,
    history_of,
    manifest,
    parse_config,
    store_config,
)
from nydus_fscache.convert.move import Mover
from nydus_fscache.convert.readers import BackendBlobs
from nydus_fscache.errors import BackendError, BadImage
from nydus_fscache.registry import media
from nydus_fscache.registry.layer import LAYER_LIMIT, extract_bootstrap
from nydus_fscache.registry.manifest import Descriptor, config_of, descriptor, nydus_image
from nydus_fscache.registry.store import Document, ImageStore, read_blob
from rafs_v6.errors import RafsError

log = logging.getLogger("converter")

_BLOB_IDS = f"{media.SNAPSHOT}nydus-blob-ids"
_HISTORY = {"created_by": "Nydus Converter", "comment": "Nydus Blob Layer"}


def is_nydus(document: Document) -> bool:
    layers = document.json.get("layers")
    return bool(layers) and isinstance(layers, list) and isinstance(layers[-1], dict) and (
        media.BOOTSTRAP in (layers[-1].get("annotations") or {})
    )  # fmt: skip


def attach(
    source: ImageStore, target: ImageStore, document: Document, backend: BackendBlobs, mover: Mover
) -> Document:
    """The new manifest; all below it but the bootstrap's layer is in ``target``.

    ``mover``: from ``backend`` to ``target``; every blob is verified against its id.
    """
    image = nydus_image(document.json, "the source")
    boot = extract_bootstrap(read_blob(source, image.bootstrap, LAYER_LIMIT))
    config_place = config_of(document.json)
    config = parse_config(read_blob(source, config_place))
    have = {blob.hex for blob in image.blobs}
    blobs = [
        blob_in(backend, blob_id) for blob_id in blob_ids(boot) if blob_id not in have
    ]  # fmt: skip
    mover.all(blobs)
    for blob in blobs:
        log.info("pushed blob from backend, blob digest: %s, size: %d", blob.digest, blob.size)
    own = document.json["layers"]
    diff_ids = [
        *(blob.digest for blob in blobs), *diff_ids_of(config, len(own)),
    ]  # fmt: skip
    added = [
        described(media.NYDUS_BLOB, blob.digest, blob.size, {media.BLOB: "true"}) for blob in blobs
    ]
    history = [*(_HISTORY for _ in blobs), *history_of(config)]
    place = store_config(target, config_place.media_type, config, diff_ids, history)
    last = {**own[-1], "annotations": _attached(own[-1]["annotations"])}
    return manifest(
        document.media_type, place, [*added, *own[:-1], last], annotations_of(document.json),
        subject=document.json.get("subject"),
    )  # fmt: skip


def blob_ids(boot: bytes) -> list[str]:
    """The objects that a bootstrap needs, in the order of its table."""
    try:
        with rafs_v6.open(boot) as image:
            blobs = image.bootstrap.blobs
    except RafsError as e:
        raise BadImage(f"the bootstrap is not valid: {e}") from e
    if any(blob.is_separate for blob in blobs):
        raise BadImage(
            "a zran image refers to layers of its registry, which are in no backend",
            hint="copy it from registry to registry",
        )
    return [blob.blob_id for blob in blobs]


def blob_in(backend: BackendBlobs, blob_id: str) -> Descriptor:
    digest = f"sha256:{blob_id}"
    size = backend.has_blob(digest)
    if size is None:
        raise BackendError(
            f"blob {blob_id} is not in the backend", hint="is its prefix right?", status=404
        )
    return descriptor({"mediaType": media.NYDUS_BLOB, "digest": digest, "size": size})


def _attached(notes: dict[str, Any]) -> dict[str, str]:
    """What is said of a bootstrap without its blobs is not true any more."""
    return {k: v for k, v in sorted(notes.items()) if k not in (_BLOB_IDS, media.UNCOMPRESSED)}
