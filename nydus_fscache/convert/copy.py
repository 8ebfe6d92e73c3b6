"""Images from store to store, byte for byte: digests stay.

Children go by their digests, the tag last, so nobody sees a tag without its image.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nydus_fscache.convert.attach import attach, is_nydus
from nydus_fscache.convert.documents import go_json
from nydus_fscache.convert.image import check_type
from nydus_fscache.convert.move import Attempts, Mover, with_originals
from nydus_fscache.convert.platforms import Platform, choose, is_attestation
from nydus_fscache.convert.progress import Progress
from nydus_fscache.convert.readers import BackendBlobs
from nydus_fscache.convert.run import Place, open_local
from nydus_fscache.errors import BadImage
from nydus_fscache.registry import media
from nydus_fscache.registry.access import Registries
from nydus_fscache.registry.archive import pack
from nydus_fscache.registry.layout import Layout
from nydus_fscache.registry.manifest import Descriptor, config_of, descriptor, list_of
from nydus_fscache.registry.store import BlobStore, Document, ImageStore

log = logging.getLogger("converter")


class Copy:
    """``run`` once.  ``work``: a directory of this run alone.

    ``backend``: where the blobs of the source are, which become layers of the target.
    """

    def __init__(
        self, registries: Registries, work: Path, *, stop: threading.Event, progress: Progress,
        attempts: Attempts, backend: BackendBlobs | None = None,
    ) -> None:  # fmt: skip
        self._registries, self._work, self._backend = registries, work, backend
        self._stop, self._progress, self._attempts = stop, progress, attempts

    def run(
        self, source: Place, target: Place, platforms: Sequence[Platform], *, every: bool
    ) -> Document:
        """The document that the target's name stands for then."""
        store = self._open(source, "importing source image from", "pulling source image")
        try:
            document = store.manifest(source.name.reference.manifest or "latest")
            if source.path is None:
                log.info("pulled source image %s", source.name)
            else:
                log.info("imported source image from %s", source.path)
            return self._put(store, document, target, platforms, every=every)
        finally:
            store.close()

    def _open(self, place: Place, local: str, remote: str) -> ImageStore:
        if place.path is not None:
            log.info("%s %s", local, place.path)
            return open_local(place.path, self._work)
        log.info("%s %s", remote, place.name)
        return self._registries.open(place.name, place.trust)

    def _put(
        self, store: ImageStore, document: Document, target: Place, platforms: Sequence[Platform],
        *, every: bool,
    ) -> Document:  # fmt: skip
        if target.path is None:
            images: ImageStore = self._registries.open(target.name, target.trust)
            final = self._copy(store, images, document, platforms, every=every)
            name = target.name.reference.tag or final.digest
            self._attempts.run(lambda: images.put_manifest(name, final), self._stop)
            log.info("pushed image %s", target.name)
            return final
        log.info("exporting source image to %s", target.path)
        direct = target.layout or target.path.is_dir()
        layout = Layout(target.path if direct else self._work / "layout", name=str(target.name))
        final = self._copy(store, layout, document, platforms, every=every)
        layout.put_manifest(
            target.name.reference.tag or "latest" if direct else final.digest, final
        )
        if not direct:
            pack(layout, str(target.name), final, target.path)
        log.info("exported image %s", target.name)
        return final

    def _copy(
        self, store: ImageStore, images: ImageStore, document: Document,
        platforms: Sequence[Platform], *, every: bool,
    ) -> Document:  # fmt: skip
        if document.media_type not in media.INDEXES:
            return self._manifest(store, images, document)
        entries = list_of(document.json, "manifests")
        if not every:
            chosen = choose(document.json, platforms, every=False, name="the source")
            if len(chosen) == 1:
                only = store.manifest(descriptor(chosen[0]).digest)
                return self._manifest(store, images, only)
            entries = chosen
        copied = [self._child(store, images, entry) for entry in entries]
        if copied == list_of(document.json, "manifests"):
            return document
        index = {**document.json, "manifests": copied}
        return Document(go_json(index, indent=False), document.media_type)

    def _child(
        self, store: ImageStore, images: ImageStore, entry: dict[str, Any]
    ) -> dict[str, Any]:
        """The entry of the copy."""
        place = descriptor(entry)
        found = entry.get("platform")
        named = found if isinstance(found, dict) else {}
        label = "/".join(str(v) for v in (named.get("os"), named.get("architecture")) if v)
        fields = {"fields": {"platform": label}}
        log.info("pushing target manifest %s", place.digest, extra=fields)
        child = store.manifest(place.digest)
        if child.media_type in media.INDEXES:
            raise BadImage("an index of indexes cannot be copied", hint="name the inner one")
        made = self._manifest(store, images, child, plain=is_attestation(entry))
        images.put_manifest(made.digest, made)
        log.info("pushed target manifest %s", made.digest, extra=fields)
        return {**entry, "digest": made.digest, "size": len(made.body)}

    def _manifest(
        self, store: ImageStore, images: ImageStore, document: Document, *, plain: bool = False
    ) -> Document:
        """All that the manifest names; the manifest of the copy."""
        if not plain:
            check_type(document)
        self._mover(store, images).all(blobs_of(store, document))
        if self._backend is None or plain:
            return document
        if not is_nydus(document):
            log.warning("the manifest %s is not a nydus image", document.digest)
            return document
        mover = self._mover(self._backend, images)
        return attach(store, images, document, self._backend, mover)

    def _mover(self, source: BlobStore, target: ImageStore) -> Mover:
        return Mover(source, target, self._work, self._stop, self._progress, self._attempts)


def blobs_of(store: ImageStore, document: Document) -> Iterator[Descriptor]:
    """Config, layers, and the gzip layers that zran blobs refer to; not foreign layers."""
    return with_originals(store, _named_by(document))


def _named_by(document: Document) -> Iterator[Descriptor]:
    yield config_of(document.json)
    for part in list_of(document.json, "layers"):
        place = descriptor(part)
        if part.get("urls") or "foreign" in place.media_type or "nondistrib" in place.media_type:
            continue
        yield place

