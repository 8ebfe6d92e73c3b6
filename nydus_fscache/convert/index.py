"""Indexes of results: of Nydus images alone, or of OCI and Nydus images side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nydus_fscache.convert.documents import (
    annotations_of,
    as_json,
    described,
    diff_ids_of,
    go_json,
    history_of,
    manifest,
    parse_config,
    store_config,
)
from nydus_fscache.convert.image import Converted
from nydus_fscache.convert.move import Mover
from nydus_fscache.registry import media
from nydus_fscache.registry.manifest import config_of, descriptor, list_of
from nydus_fscache.registry.store import Document, ImageStore, put_blob, read_blob
from rafs_v6.values import dataclass

# An empty tar.gz in front of an OCI image's layers: so a node never mixes both kinds of layers.
EMPTY_GZIP = bytes.fromhex("1f8b08000000000000ff621805a360148c5800080000ffff2eafb5ef00040000")
EMPTY_DIFF_ID = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
_EMPTY_HISTORY = {"created_by": "Nydus Converter", "comment": "Nydus Empty Layer"}


@dataclass(frozen=True, slots=True)
class Pair:
    """``entry``: of the source's index, or what would stand there for a single manifest."""

    entry: Mapping[str, Any]
    source: Document
    converted: Converted


def index_of(source: Document, pairs: Sequence[Pair], *, oci: bool) -> Document:
    """Nydus images in the order of the source's."""
    kind = media.OCI_INDEX if oci else source.media_type
    entries = []
    for pair in pairs:
        made = pair.converted.document.descriptor
        notes = pair.entry.get("annotations")
        if isinstance(notes, dict) and notes:
            made["annotations"] = dict(sorted(notes.items()))
        made["platform"] = _platform(pair)
        entries.append(made)
    document: dict[str, Any] = {"schemaVersion": 2, "mediaType": kind, "manifests": entries}
    if notes := annotations_of(source.json):
        document["annotations"] = dict(sorted(notes.items()))
    return Document(go_json(document, indent=False), kind)


def merged_index(
    source: Document, pairs: Sequence[Pair], store: ImageStore, images: ImageStore, mover: Mover
) -> Document:
    """OCI images, with the empty layer in front, and Nydus images; all are in ``images`` then."""
    plain, nydus = [], []
    for pair in pairs:
        place = _platform(pair)
        document = _with_empty_layer(pair.source, store, images, mover)
        plain.append(
            {
                **document.descriptor,
                "annotations": {media.SOURCE_DIGEST: pair.source.digest},
                "platform": place,
            }
        )
        images.put_manifest(document.digest, document)
        hidden = _hide_config(pair.converted.document)
        images.put_manifest(hidden.digest, hidden)
        nydus.append(
            {**hidden.descriptor, "platform": place, "artifactType": media.NYDUS_MANIFEST}
        )
    index: dict[str, Any] = {"schemaVersion": 2, "manifests": [*plain, *nydus]}
    if source.media_type in media.INDEXES and (notes := annotations_of(source.json)):
        index["annotations"] = dict(sorted(notes.items()))
    return Document(go_json(index, indent=True), media.OCI_INDEX)


def _hide_config(document: Document) -> Document:
    """A config type of Nydus's own, so that plain containerd does not unpack the image."""
    found = dict(document.json)
    found["config"] = {**found["config"], "mediaType": media.NYDUS_CONFIG}
    return Document(go_json(found, indent=True), document.media_type)


def _with_empty_layer(
    source: Document, store: ImageStore, images: ImageStore, mover: Mover
) -> Document:
    layers = [descriptor(e) for e in list_of(source.json, "layers")]
    config = parse_config(read_blob(store, config_of(source.json)))
    mover.all(layers)
    docker = source.media_type in media.DOCKER
    diff_ids = [EMPTY_DIFF_ID, *diff_ids_of(config, len(layers))]
    history = [_EMPTY_HISTORY, *history_of(config)]
    first = described(
        media.DOCKER_LAYER_GZIP if docker else media.OCI_LAYER_GZIP,
        put_blob(images, EMPTY_GZIP), len(EMPTY_GZIP), {media.EMPTY_LAYER: "true"},
    )  # fmt: skip
    kind = media.DOCKER_CONFIG if docker else media.OCI_CONFIG
    return manifest(
        source.media_type,
        store_config(images, kind, config, diff_ids, history, indent=True),
        [first, *(as_json(layer) for layer in layers)],
        {**annotations_of(source.json), media.SOURCE_DIGEST: source.digest},
    )


def _platform(pair: Pair) -> dict[str, Any]:
    """The index's word, else the config's; keys in the order of Go's structure."""
    said = pair.entry.get("platform")
    found = said if isinstance(said, dict) and said.get("os") else pair.converted.platform
    keys = ("architecture", "os", "os.version", "os.features", "variant")
    return {key: found[key] for key in keys if found.get(key)}


def selected_size(document: Document) -> int:
    """Config and layers, as the sizes of a report count them."""
    layers = [descriptor(e) for e in list_of(document.json, "layers")]
    return sum(part.size for part in (config_of(document.json), *layers))


