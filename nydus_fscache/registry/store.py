"""What keeps images: a repository of a registry, an OCI layout, an archive.  Shapes only.

A blob appears under its digest whole or not at all; a manifest is put when
everything that it names is there.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any, Protocol

from nydus_fscache.errors import BadImage
from nydus_fscache.registry.manifest import Descriptor, parse_document
from nydus_fscache.registry.media import INDEXES, MANIFESTS
from rafs_v6.values import dataclass

DOCUMENT_LIMIT = 8 * 1024 * 1024  # of a manifest, an index or a config, as the original's
PIECE = 1 << 20  # bytes that are moved at once


@dataclass(frozen=True)
class Document:
    """A manifest or an index, byte for byte, with the type that its keeper gave."""

    body: bytes
    media_type: str

    @cached_property
    def digest(self) -> str:
        return digest_of(self.body)

    @cached_property
    def json(self) -> dict[str, Any]:
        """``BadImage`` when it is not a JSON object."""
        return parse_document(self.body)

    @property
    def descriptor(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.body)}


class BlobStream(Protocol):
    """The bytes of one blob in their order."""

    def readinto(self, buf: memoryview) -> int: ...

    def close(self) -> None: ...


class BlobWriter(Protocol):
    """A blob that is being stored.  One of ``finish`` and ``abort`` ends it."""

    def write(self, data: bytes | memoryview) -> None: ...

    def finish(self, digest: str) -> None:
        """All was written: it appears.  The caller vouches for ``digest``."""
        ...

    def abort(self) -> None:
        """Nothing appears.  Never raises; allowed after ``finish``."""
        ...


class BlobStore(Protocol):
    """Thread-safe.  Errors are ``BackendError`` and ``OSError``."""

    def has_blob(self, digest: str) -> int | None:
        """Its size; None when it is not there."""
        ...

    def open_blob(self, digest: str, size: int) -> BlobStream: ...

    def read_at(self, digest: str, off: int, length: int) -> bytes: ...

    def writer(self) -> BlobWriter: ...

    def close(self) -> None: ...


class ImageStore(BlobStore, Protocol):
    def manifest(self, name: str) -> Document:
        """By tag, or by digest (then verified)."""
        ...

    def put_manifest(self, name: str, document: Document) -> None:
        """``name``: a tag or a digest."""
        ...


def digest_of(data: bytes | bytearray) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def document_of(body: bytes, said: str, *, digest: str = "") -> Document:
    """``body`` as an index or manifest; its own mediaType goes before ``said``."""
    document = parse_document(body)
    if digest and digest_of(body) != digest:
        raise BadImage(
            f"a manifest with digest {digest_of(body)} came for {digest}",
            hint="the registry or something before it is faulty, or hostile",
        )
    own = document.get("mediaType")
    media_type = own if isinstance(own, str) and own else said.partition(";")[0].strip()
    if media_type not in (*INDEXES, *MANIFESTS) and document.get("schemaVersion") != 1:
        # Old tools wrote neither field nor a useful header.
        media_type = INDEXES[0] if "manifests" in document else media_type
    return Document(body, media_type)


def copy_blob(source: BlobStream, writer: BlobWriter, descriptor: Descriptor) -> None:
    """Move a blob, verified as it goes: a wrong one never appears."""
    digest = hashlib.sha256()
    size = 0
    buf = memoryview(bytearray(PIECE))
    try:
        while count := source.readinto(buf):
            digest.update(buf[:count])
            size += count
            writer.write(bytes(buf[:count]))
        check_blob(descriptor, f"sha256:{digest.hexdigest()}", size)
        writer.finish(descriptor.digest)
    finally:
        writer.abort()
        source.close()


def check_blob(descriptor: Descriptor, digest: str, size: int) -> None:
    if size != descriptor.size or digest != descriptor.digest:
        raise BadImage(
            f"layer {descriptor.digest} of {descriptor.size} bytes came as {digest}, {size} bytes",
            hint="the source is damaged: push the image again",
        )


def read_blob(store: BlobStore, descriptor: Descriptor, limit: int = DOCUMENT_LIMIT) -> bytes:
    """A whole small blob, verified."""
    if descriptor.size > limit:
        raise BadImage(
            f"{descriptor.digest} has {descriptor.size} bytes; {limit} are allowed here"
        )
    data = store.read_at(descriptor.digest, 0, descriptor.size)
    check_blob(descriptor, digest_of(data), len(data))
    return data


def put_blob(store: BlobStore, data: bytes) -> str:
    """Store ``data``, which is little: writers look themselves whether it is there; its digest."""
    digest = digest_of(data)
    writer = store.writer()
    try:
        writer.write(data)
        writer.finish(digest)
    finally:
        writer.abort()
    return digest
