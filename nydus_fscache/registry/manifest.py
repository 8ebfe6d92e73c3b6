"""Manifests and indexes, and which of them are Nydus images (docs/nydusd.md).  No I/O.

Everything here comes from a registry: sizes are bounded, digests are checked for
form, and unknown shapes are refused with the reason.
"""

from __future__ import annotations

import json
import platform as machine
import re
from collections.abc import Mapping
from typing import Any

from nydus_fscache.errors import BadImage
from rafs_v6.values import dataclass

INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
NYDUS_OS_FEATURE = "nydus.remoteimage.v1"
NYDUS_ARTIFACT = "application/vnd.nydus.image.manifest.v1+json"
NYDUS_BLOB_TYPE = "application/vnd.oci.image.layer.nydus.blob.v1"

_PREFIX = "containerd.io/snapshot/"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """``digest`` is sha256:hex; ``size`` in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str]

    @property
    def hex(self) -> str:
        return self.digest.removeprefix("sha256:")

    def marked(self, name: str) -> bool:
        """Has the annotation ``containerd.io/snapshot/<name>``."""
        return f"{_PREFIX}{name}" in self.annotations


@dataclass(frozen=True, slots=True)
class NydusImage:
    """``bootstrap``: the layer that holds it.  ``blobs``: the others, in the order of the table.

    ``references``: blob ids that the bootstrap uses and that are not layers here.
    """

    bootstrap: Descriptor
    blobs: tuple[Descriptor, ...]
    references: tuple[str, ...]


def parse_document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise BadImage("the manifest is not a JSON object", hint="is this a registry?")
    return document


def is_index(document: Mapping[str, Any], content_type: str) -> bool:
    media_type = document.get("mediaType") or content_type.partition(";")[0].strip()
    return media_type in INDEX_TYPES or ("manifests" in document and "layers" not in document)


def own_architecture() -> str:
    """This machine's, as images name it."""
    return _ARCHITECTURES.get(machine.machine(), machine.machine())


def choose_manifest(index: Mapping[str, Any], architecture: str) -> Descriptor:
    """The Nydus manifest for this machine; a plain one when none says that it is Nydus."""
    fitting: list[tuple[bool, Descriptor]] = []
    seen: set[str] = set()
    for entry in list_of(index, "manifests"):
        platform = entry.get("platform")
        platform = platform if isinstance(platform, dict) else {}
        seen.add(f"{platform.get('os', '?')}/{platform.get('architecture', '?')}")
        if platform and (platform.get("os"), platform.get("architecture")) != (
            "linux",
            architecture,
        ):
            continue
        features = platform.get("os.features")
        nydus = isinstance(features, list) and NYDUS_OS_FEATURE in features
        nydus = nydus or entry.get("artifactType") == NYDUS_ARTIFACT
        fitting.append((nydus, descriptor(entry)))
    if not fitting:
        raise BadImage(
            f"no image for linux/{architecture}", hint=f"there are {', '.join(sorted(seen))}"
        )
    return next((entry for nydus, entry in fitting if nydus), fitting[0][1])


def descriptor(entry: object) -> Descriptor:
    """``BadImage`` for what is not one."""
    if not isinstance(entry, Mapping):
        raise BadImage("the manifest has a part that is not an object", hint="is this an image?")
    digest, size = entry.get("digest"), entry.get("size")
    if not (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
        raise BadImage("the manifest names a digest that is not a sha256", hint="push it again")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 62:
        raise BadImage(f"the manifest gives no valid size for {digest}", hint="push it again")
    notes = entry.get("annotations")
    return Descriptor(
        str(entry.get("mediaType", "")),
        digest,
        size,
        {str(k): str(v) for k, v in notes.items()} if isinstance(notes, dict) else {},
    )


def nydus_image(manifest: Mapping[str, Any], name: str) -> NydusImage:
    """``BadImage`` for an image that is not Nydus, or is RAFS v5."""
    layers = [descriptor(layer) for layer in list_of(manifest, "layers")]
    marked = [layer for layer in layers if layer.marked("nydus-bootstrap")]
    if not marked or marked[-1] is not layers[-1]:
        raise BadImage(
            f"{name} is not a Nydus image: its last layer is not marked as a bootstrap",
            hint="convert it: nydusify convert --source … --target …",
        )
    bootstrap = marked[-1]
    version = bootstrap.annotations.get(f"{_PREFIX}nydus-fs-version", "6")
    if version != "6":
        raise BadImage(
            f"{name} is a RAFS v{version} image; the kernel reads v6 only",
            hint="convert it with --fs-version 6",
        )
    blobs = tuple(
        layer
        for layer in layers[:-1]
        if layer.marked("nydus-blob") or layer.media_type == NYDUS_BLOB_TYPE
    )
    return NydusImage(bootstrap, blobs, _references(bootstrap))


def _references(bootstrap: Descriptor) -> tuple[str, ...]:
    text = bootstrap.annotations.get(f"{_PREFIX}nydus-reference-blob-ids", "[]")
    try:
        ids = json.loads(text)
    except (ValueError, RecursionError):
        ids = None
    if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
        raise BadImage("annotation nydus-reference-blob-ids is not a list", hint="push it again")
    return tuple(ids)


def config_of(manifest: Mapping[str, Any]) -> Descriptor:
    """Of the image's config; ``BadImage`` without one."""
    found = manifest.get("config")
    if not isinstance(found, Mapping):
        raise BadImage("the manifest has no config", hint="is this an image?")
    return descriptor(found)


def list_of(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """A member of a manifest or index; ``BadImage`` when it is not a list of objects."""
    entries = document.get(name)
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise BadImage(f"the manifest has no valid list of {name}", hint="is this an image?")
    return entries
