"""What refers to an image: artifacts with a subject, as the distribution specification 1.1 has it.

Where a registry has no referrers API, the index under the fallback tag
(``sha256-HEX``) is read and kept.  The API's answers have no order, so each artifact says
when it was made.
"""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from typing import Any

from nydus_fscache.errors import BackendError, BadImage
from nydus_fscache.registry.manifest import Descriptor, descriptor, list_of
from nydus_fscache.registry.media import CREATED, EMPTY, OCI_INDEX, OCI_MANIFEST
from nydus_fscache.registry.repository import Repository
from nydus_fscache.registry.store import Document, put_blob, read_blob

_EMPTY_BODY = b"{}"
_LIMIT = 64  # artifacts of one type that are looked at


def find(repository: Repository, subject: str, artifact_type: str) -> list[Descriptor]:
    """The manifests of that type that refer to ``subject``, the one that was made last first."""
    entries = repository.referrers(subject, artifact_type)
    if entries is None:
        entries = _fallback(repository, subject).get("manifests")
    if not isinstance(entries, list):
        return []
    fitting = []
    for entry in entries:
        if isinstance(entry, dict) and entry.get("artifactType") == artifact_type:
            with contextlib.suppress(BadImage):  # others' entries do not hide ours
                fitting.append(descriptor(entry))
    # Those of one moment, and those that do not say: the last one of the list.
    fitting.reverse()
    fitting.sort(key=_created, reverse=True)
    return fitting[:_LIMIT]


def _created(artifact: Descriptor) -> datetime:
    """By the registry's copy of its annotations (distribution 1.1)."""
    try:
        found = datetime.fromisoformat(str(artifact.annotations.get(CREATED, "")))
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def attach(
    repository: Repository, subject: Document, artifact_type: str, data: bytes,
    annotations: dict[str, str],
) -> str:  # fmt: skip
    """Store ``data`` as an artifact of ``subject``; the digest of its manifest."""
    annotations = {**annotations, CREATED: datetime.now(UTC).isoformat()}
    empty = {
        "mediaType": EMPTY, "digest": put_blob(repository, _EMPTY_BODY), "size": len(_EMPTY_BODY),
    }  # fmt: skip
    layer = {"mediaType": artifact_type, "digest": put_blob(repository, data), "size": len(data)}
    manifest = {
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": artifact_type,
        "config": empty, "layers": [layer], "subject": subject.descriptor,
        "annotations": annotations,
    }  # fmt: skip
    document = Document(json.dumps(manifest, indent=2).encode(), OCI_MANIFEST)
    repository.put_manifest(document.digest, document)
    if repository.referrers(subject.digest) is None:
        _note(repository, subject.digest, document, artifact_type, annotations)
    return document.digest


def read(
    repository: Repository, artifact: Descriptor, subject: str, artifact_type: str, limit: int
) -> bytes:
    """The data of an artifact of ``subject``; ``BadImage`` when it is not one."""
    found = repository.manifest(artifact.digest).json
    if descriptor(found.get("subject")).digest != subject:
        raise BadImage(f"the artifact {artifact.digest} is of another image")
    layers = list_of(found, "layers")
    if len(layers) != 1:
        raise BadImage(f"the artifact {artifact.digest} has not exactly one layer")
    layer = descriptor(layers[0])
    if layer.media_type != artifact_type or layer.size > limit:
        raise BadImage(f"the artifact {artifact.digest} is not what its type says")
    return read_blob(repository, layer, limit)


def _tag(subject: str) -> str:
    return subject.replace(":", "-")


def _fallback(repository: Repository, subject: str) -> dict[str, Any]:
    try:
        return repository.manifest(_tag(subject)).json
    except BackendError as e:
        if e.status == 404:
            return {}
        raise


def _note(
    repository: Repository, subject: str, document: Document, artifact_type: str,
    annotations: dict[str, str],
) -> None:  # fmt: skip
    index = _fallback(repository, subject)
    there = list_of({"manifests": [], **index}, "manifests")
    entries = [e for e in there if e.get("digest") != document.digest]
    entries.append(
        {**document.descriptor, "artifactType": artifact_type, "annotations": annotations}
    )
    body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    repository.put_manifest(_tag(subject), Document(json.dumps(body, indent=2).encode(), OCI_INDEX))
