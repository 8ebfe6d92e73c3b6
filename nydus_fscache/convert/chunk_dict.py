"""A dictionary of chunks: an image whose bootstrap new images refer to, and its blobs.

Only its manifest, its config and its bootstrap are pulled; its blobs stay where
they are until a new image needs one of them.
"""

from __future__ import annotations

import json
from pathlib import Path

from nydus_fscache.convert.errors import ConvertError
from nydus_fscache.errors import BadImage, UsageError
from nydus_fscache.registry.layer import LAYER_LIMIT, extract_bootstrap
from nydus_fscache.registry.manifest import Descriptor, nydus_image
from nydus_fscache.registry.media import INDEXES
from nydus_fscache.registry.store import BlobStore, ImageStore, digest_of, read_blob
from rafs_v6.values import dataclass

_KINDS, _PLACES = ("bootstrap",), ("registry", "local")


@dataclass(frozen=True, slots=True)
class ChunkDict:
    """``blobs``: those of the dictionary's image, by id; none for a bootstrap from a file."""

    path: Path
    digest: str
    blobs: dict[str, Descriptor]
    store: BlobStore | None

    def blob(self, blob_id: str) -> Descriptor:
        found = self.blobs.get(blob_id)
        if found is None:
            raise ConvertError(
                f"the chunk dictionary brings blob {blob_id}, whose place is not known",
                hint="name the dictionary's image: --chunk-dict bootstrap:registry:REF",
            )
        return found


def parse(expression: str) -> tuple[str, str]:
    """(registry or local, reference or path) of ``bootstrap:registry:REF``."""
    words = expression.split(":", 2)
    if len(words) != 3:
        raise UsageError(
            "parse chunk dict arguments: invalid args", hint="bootstrap:registry:REF"
        )
    kind, place, where = words
    if kind not in _KINDS:
        raise UsageError(f"invalid chunk dict format {kind}, should be [{' '.join(_KINDS)}]")
    if place not in _PLACES:
        raise UsageError(f"invalid chunk dict source {place}, should be [{' '.join(_PLACES)}]")
    return place, where


def local(path: Path) -> ChunkDict:
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UsageError(f"chunk dict not accessible: {path}: {e.strerror}") from e
    return ChunkDict(path.absolute(), digest_of(data), {}, None)


def pulled(store: ImageStore, name: str, work: Path) -> ChunkDict:
    document = store.manifest(name)
    if document.media_type in INDEXES:
        raise BadImage(
            f"the chunk dictionary {name} is an index", hint="name one of its manifests by digest"
        )
    image = nydus_image(document.json, f"the chunk dictionary {name}")
    boot = extract_bootstrap(read_blob(store, image.bootstrap, LAYER_LIMIT))
    path = work / "chunk-dict.boot"
    path.write_bytes(boot)
    blobs = {blob.hex: blob for blob in image.blobs}
    return ChunkDict(path, digest_of(boot), blobs, store)


def output_blobs(path: Path) -> list[str]:
    """``blobs`` of a builder's --output-json."""
    try:
        found = json.loads(path.read_bytes())["blobs"]
        return [str(blob) for blob in found]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ConvertError(f"the builder wrote no valid {path.name}: {e}") from e
