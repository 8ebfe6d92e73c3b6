"""From an image reference to the needs of a mount: bootstrap bytes, and the place of the blobs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field
from typing import Any

from nydus_fscache.errors import UsageError
from nydus_fscache.registry.certificates import find_tls
from nydus_fscache.registry.client import RegistryClient
from nydus_fscache.registry.credentials import find_auth
from nydus_fscache.registry.layer import LAYER_LIMIT, extract_bootstrap
from nydus_fscache.registry.manifest import (
    NydusImage,
    choose_manifest,
    is_index,
    nydus_image,
    own_architecture,
    parse_document,
)
from nydus_fscache.registry.options import take_registry_options
from nydus_fscache.registry.reference import Reference, canonical_host
from nydus_fscache.registry.scheme import find_scheme
from rafs_v6.values import dataclass

_DEADLINE_S = 120.0


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


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image whose manifest is here, and whose bootstrap is not yet."""

    client: RegistryClient
    reference: Reference
    image: NydusImage
    manifest_digest: str
    _backend: dict[str, Any] = field(repr=False)
    _deadline: float

    def pull(self) -> PulledImage:
        """Download and verify the bootstrap."""
        layer = self.client.blob(
            self.reference.repo, self.image.bootstrap, limit=LAYER_LIMIT, deadline=self._deadline
        )
        return PulledImage(
            reference=str(self.reference),
            manifest_digest=self.manifest_digest,
            bootstrap=extract_bootstrap(layer),
            bootstrap_digest=self.image.bootstrap.digest,
            blob_sizes={blob.hex: blob.size for blob in self.image.blobs},
            references=self.image.references,
            backend={"type": "registry", "registry": self._backend},
        )


@contextmanager
def find_image(
    reference: str,
    *,
    plain_http: bool = False,
    options: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Iterator[FoundImage]:
    """Ask for the manifest.  The client is closed when the block is left.

    ``options``: a table of the registry backend, whose authorities, proxy, credentials and
    so on count for pulling as they do for reading.  Host and repository are those of the
    reference; where the table names others, its own are for the blobs.

    Raises ``UsageError`` (reference, options, credentials' form), ``BackendError`` (registry)
    or ``BadImage`` (not Nydus, wrong digest, damaged).
    """
    ref = Reference.parse(reference)
    deadline = time.monotonic() + _DEADLINE_S
    if not isinstance(options or {}, Mapping):
        raise UsageError("the options of the registry are not a table", hint="see docs/backends.md")
    given = dict(options or {})
    table: dict[str, Any] = {**given, "host": ref.host, "repo": ref.repo}
    if plain_http:
        table["scheme"] = "http"
    _add_certificates(table, ref.host, environ)
    if not table.get("scheme"):
        http = take_registry_options({**table, "scheme": "https"}).http
        table["scheme"] = find_scheme(ref.host, http, deadline=deadline)
    if not (table.get("auth") or table.get("registry_token")):
        table["auth"] = find_auth(ref.host, environ)
    with RegistryClient.of(take_registry_options(table)) as client:
        image, digest = _image(client, ref, deadline)
        blobs_at = given.get("host")
        if isinstance(blobs_at, str) and canonical_host(blobs_at) != canonical_host(ref.host):
            table = given  # credentials and scheme of one host are not another's
        else:
            table["repo"] = given.get("repo", ref.repo)
        yield FoundImage(client, ref, image, digest, table, deadline)


def pull_bootstrap(
    reference: str,
    *,
    plain_http: bool = False,
    options: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> PulledImage:
    """``find_image`` and ``pull`` at once."""
    with find_image(
        reference, plain_http=plain_http, options=options, environ=environ
    ) as found:  # fmt: skip
        return found.pull()


def _add_certificates(table: dict[str, Any], host: str, environ: Mapping[str, str]) -> None:
    """Those of this host that lie on the machine, unless the options name some."""
    found = find_tls(host, environ)
    if found.ca_cert_files and not table.get("ca_cert_files"):
        table["ca_cert_files"] = list(found.ca_cert_files)
    if found.client_cert_file and not table.get("client_cert_file"):
        table["client_cert_file"] = found.client_cert_file
        table["client_key_file"] = found.client_key_file


def _image(client: RegistryClient, ref: Reference, deadline: float) -> tuple[NydusImage, str]:
    """The image, and the digest of its manifest."""
    found = client.manifest(ref.repo, ref.manifest, deadline=deadline)
    document = parse_document(found.body)
    if is_index(document, found.media_type):
        chosen = choose_manifest(document, own_architecture())
        found = client.manifest(ref.repo, chosen.digest, deadline=deadline)
        document = parse_document(found.body)
    return nydus_image(document, str(ref)), found.digest
