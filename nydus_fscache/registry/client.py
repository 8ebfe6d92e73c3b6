"""Manifests and whole small blobs of one repository, verified against their digests.

Built on the registry backend, so credentials, redirects, mirrors, time-outs and
retries are the same for a manifest as for the data.
"""

from __future__ import annotations

import hashlib
from typing import Any

from nydus_fscache.backend.registry import Registry
from nydus_fscache.config.options import Options
from nydus_fscache.errors import BackendError, BadImage
from nydus_fscache.http.retry import StatusError
from nydus_fscache.http.route import Ask
from nydus_fscache.registry.manifest import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from nydus_fscache.registry.reference import Reference

_MANIFEST_LIMIT = 8 * 1024 * 1024  # what the original reads of an index, too
_ACCEPT = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))


class RegistryClient:
    """``table``: the options of the ``registry`` backend.  A context manager."""

    def __init__(self, table: dict[str, Any]) -> None:
        self._backend = Registry(Options("registry", table))
        self._repo = table["repo"]

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self._backend.close()

    def manifest(self, reference: Reference | Descriptor, *, deadline: float) -> tuple[bytes, str]:
        """Body and content type; verified when it is asked for by digest."""
        name = reference.manifest if isinstance(reference, Reference) else reference.digest
        body, content_type = self._get_manifest(name, deadline)
        actual = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if reference.digest and actual != reference.digest:
            raise BadImage(
                f"the registry sent a manifest with digest {actual} for {reference.digest}",
                hint="the registry or something before it is faulty, or hostile",
            )
        return body, content_type

    def _get_manifest(self, name: str, deadline: float) -> tuple[bytes, str]:
        clock, patience = self._backend.begin(deadline)
        url = self._backend.repo_url(f"manifests/{name}")
        ask = Ask("GET", {**self._backend.headers, "Accept": _ACCEPT}, clock)
        while True:
            try:
                response = self._backend.follow(url, ask, "")
                try:
                    if response.status != 200:
                        raise StatusError(f"manifest {self._repo}:{name}", response)
                    body = response.read(_MANIFEST_LIMIT)
                    return body, response.headers.get("content-type", "")
                finally:
                    response.close()
            except BackendError as e:
                patience.failed(e)

    def blob(self, layer: Descriptor, *, limit: int, deadline: float) -> bytes:
        """A whole blob, verified against its digest; refused when larger than ``limit``."""
        if layer.size > limit:
            raise BadImage(f"layer {layer.digest} has {layer.size} bytes, {limit} are allowed")
        actual_size = self._backend.size(layer.hex, deadline=deadline)
        if actual_size != layer.size:
            raise BadImage(
                f"layer {layer.digest} has {actual_size} bytes, {layer.size} by the manifest",
                hint="push the image again",
            )
        data = self._backend.read(layer.hex, 0, layer.size, deadline=deadline)
        if hashlib.sha256(data).hexdigest() != layer.hex:
            raise BadImage(
                f"layer {layer.digest} does not match its digest",
                hint="the registry or something before it is faulty, or hostile",
            )
        return data
