"""From an image reference to what a mount needs: bootstrap bytes, and where the blobs are."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nydus_fscache.registry.client import RegistryClient
from nydus_fscache.registry.credentials import find_auth
from nydus_fscache.registry.layer import LAYER_LIMIT, extract_bootstrap
from nydus_fscache.registry.manifest import (
    NydusImage,
    choose_manifest,
    is_index,
    nydus_image,
    parse_document,
)
from nydus_fscache.registry.options import take_registry_options
from nydus_fscache.registry.reference import Reference

_DEADLINE_S = 120.0
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}


@dataclass(frozen=True, slots=True)
class PulledImage:
    """``backend`` is the configuration of the registry backend, with its credentials.

    ``blob_sizes``: bytes of each data blob by id, as the manifest says.
    ``bootstrap_digest``: of the layer that the bootstrap came out of, verified.
    """

    reference: str
    manifest_digest: str
    bootstrap: bytes = field(repr=False)
    bootstrap_digest: str
    blob_sizes: Mapping[str, int]
    references: tuple[str, ...]
    backend: dict[str, Any] = field(repr=False)


def pull_bootstrap(
    reference: str,
    *,
    plain_http: bool = False,
    options: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> PulledImage:
    """Download and verify the bootstrap.  ``options``: more of the registry backend's options.

    Raises ``UsageError`` (reference, credentials' form), ``BackendError`` (registry) or
    ``BadImage`` (not Nydus, wrong digest, damaged).
    """
    ref = Reference.parse(reference)
    table: dict[str, Any] = {
        "scheme": "http" if plain_http else "https",
        "host": ref.host,
        "repo": ref.repo,
        **(options or {}),
    }
    if "auth" not in table and (auth := find_auth(ref.host, environ)):
        table["auth"] = auth
    deadline = time.monotonic() + _DEADLINE_S
    with RegistryClient.of(take_registry_options(table)) as client:
        image, digest = _image(client, ref, deadline)
        layer = client.blob(ref.repo, image.bootstrap, limit=LAYER_LIMIT, deadline=deadline)
    return PulledImage(
        reference=str(ref),
        manifest_digest=digest,
        bootstrap=extract_bootstrap(layer),
        bootstrap_digest=image.bootstrap.digest,
        blob_sizes={blob.hex: blob.size for blob in image.blobs},
        references=image.references,
        backend={"type": "registry", "registry": table},
    )


def _image(client: RegistryClient, ref: Reference, deadline: float) -> tuple[NydusImage, str]:
    """The image, and the digest of its manifest."""
    found = client.manifest(ref.repo, ref.manifest, deadline=deadline)
    document = parse_document(found.body)
    if is_index(document, found.media_type):
        architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
        chosen = choose_manifest(document, architecture)
        found = client.manifest(ref.repo, chosen.digest, deadline=deadline)
        document = parse_document(found.body)
    return nydus_image(document, str(ref)), found.digest
