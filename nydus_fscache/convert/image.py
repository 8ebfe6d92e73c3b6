"""One image: its layers to blobs, one bootstrap over them, a config and a manifest.

Everything is in the target before the manifest is returned; putting it under a
name is the caller's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from nydus_fscache.convert.bootstrap_layer import Entry, StoredLayer, store_layer
from nydus_fscache.convert.builder import Builder
from nydus_fscache.convert.chunk_dict import ChunkDict, output_blobs
from nydus_fscache.convert.documents import (
    BOOTSTRAP_HISTORY,
    annotations_of,
    as_json,
    described,
    diff_ids_of,
    history_of,
    manifest,
    parse_config,
    store_config,
)
from nydus_fscache.convert.layer import Packed, Packer, once
from nydus_fscache.convert.move import Mover, with_originals
from nydus_fscache.errors import BadImage
from nydus_fscache.registry import media
from nydus_fscache.registry.manifest import Descriptor, config_of, descriptor, list_of
from nydus_fscache.registry.store import BlobStore, Document, ImageStore, read_blob
from rafs_v6.values import dataclass

log = logging.getLogger("converter")

_DICTIONARY_HISTORY = {"created_by": "Nydus Converter", "comment": "Nydus Chunk Dictionary Layer"}
_MAX_LAYERS = 127  # of container run-times


@dataclass(frozen=True, slots=True)
class Naming:
    """The annotations of a result.  ``digest``: of what the source's name stands for."""

    reference: str
    digest: str
    fs_version: str
    builder: str

    def annotations(self, source: Mapping[str, Any]) -> dict[str, str]:
        notes = annotations_of(source)
        notes[media.FS_VERSION] = self.fs_version
        notes[media.SOURCE_DIGEST] = self.digest
        notes[media.SOURCE_REFERENCE] = self.reference
        if self.builder:
            notes[media.BUILDER_VERSION] = self.builder
        return notes


@dataclass(frozen=True, slots=True)
class Shape:
    """``oci``: OCI types even for a docker source.  ``detached``: blobs are not in the registry.

    ``referrer``: the manifest says that the source is its subject.  ``toc_digest``: layers have
    the annotation by which Podman 5.1 and later ask an additional layer store.
    """

    oci: bool = False
    detached: bool = False
    referrer: bool = False
    toc_digest: bool = False
    parallel: int = 2


@dataclass(frozen=True, slots=True)
class Converted:
    """``layers``: what became of each source layer, for a cache."""

    document: Document
    platform: dict[str, str]
    layers: list[Packed]


@dataclass(slots=True)
class ImageConverter:
    """``images``: where manifests, configs and bootstraps go; ``packer.target``: the blobs."""

    source: ImageStore
    images: ImageStore
    packer: Packer
    mover: Mover
    builder: Builder
    work: Path
    stop: threading.Event
    shape: Shape
    naming: Naming
    chunk_dict: ChunkDict | None = None
    made: int = 0

    def convert(self, document: Document) -> Converted:
        check_type(document)
        source = document.json
        layers = [descriptor(e) for e in list_of(source, "layers")]
        config_place = config_of(source)
        config = parse_config(read_blob(self.source, config_place))
        if layers and layers[-1].marked("nydus-bootstrap"):
            return self._pass_on(document, source, layers, config, config_place)
        check_layers(layers)
        diff_ids_of(config, len(layers))
        packed = self._pack(layers)
        self.made += 1
        merged, ids = self._merge(packed)
        entries = self._entries_of(packed, merged)
        bootstrap = self.mover.stored(lambda: store_layer(self.images, entries))
        blobs = self._blob_layers(packed, ids)
        return Converted(
            self._document(document, source, config, blobs, bootstrap), platform_of(config), packed
        )

    def _pass_on(
        self, document: Document, source: Mapping[str, Any], layers: Sequence[Descriptor],
        config: Mapping[str, Any], config_place: Descriptor,
    ) -> Converted:  # fmt: skip
        """It is Nydus already: all is copied, only the annotations name their source."""
        self.mover.all(with_originals(self.source, [config_place, *layers]))
        made = manifest(
            document.media_type, source["config"],
            self._annotated([as_json(layer) for layer in layers]),
            self.naming.annotations(source),
        )  # fmt: skip
        return Converted(made, platform_of(config), [])

    def _pack(self, layers: Sequence[Descriptor]) -> list[Packed]:
        """In the order of ``layers``; equal ones are built once, and the largest first: a large one
        that began last would be built alone."""
        results: dict[str, Packed] = {}
        base = self.made * 1000
        largest = sorted(enumerate(once(layers)), key=lambda one: -one[1].size)
        with ThreadPoolExecutor(self.shape.parallel, "layer") as pool:
            jobs: dict[Future[Packed], str] = {
                pool.submit(self.packer.pack, layer, base + i): layer.digest
                for i, layer in largest
            }
            try:
                for job in as_completed(jobs):
                    results[jobs[job]] = job.result()
            except BaseException:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                raise
        return [results[layer.digest] for layer in layers]

    def _merge(self, packed: Sequence[Packed]) -> tuple[Path, list[str]]:
        directory = self.work / f"nydus-merge-{self.made}"
        directory.mkdir()
        output, boot = directory / "merge-output.json", directory / "bootstrap"
        words = [
            "merge", "--log-level", "warn", "--prefetch-policy", "fs",
            "--output-json", str(output), "--bootstrap", str(boot),
        ]  # fmt: skip
        if self.chunk_dict is not None:
            words += ["--chunk-dict", f"bootstrap={self.chunk_dict.path}"]
        if self.packer.options.oci_ref:
            words += [
                "--blob-digests", ",".join(p.blob.digest.removeprefix("sha256:") for p in packed),
                "--blob-toc-digests", ",".join(p.toc_digest for p in packed),
                "--blob-sizes", ",".join(str(p.blob.size) for p in packed),
            ]  # fmt: skip
        self.builder.run([*words, *(str(p.boot) for p in packed)], prefetch=True)
        return boot, output_blobs(output)

    def _entries_of(self, packed: Sequence[Packed], boot: Path) -> list[Entry]:
        entries = [Entry("image", 0o755), Entry("image/image.boot", 0o444, boot)]
        if self.packer.options.fs_version != "6":
            return entries
        for one in packed:
            if one.meta is None:
                log.warning("blob data for layer %s is empty, skipped", one.source.hex)
            else:
                entries.append(Entry(f"image/{one.meta.name}", 0o444, one.meta))
        return entries

    def _blob_layers(self, packed: Sequence[Packed], ids: Sequence[str]) -> list[dict[str, Any]]:
        zran = self.packer.options.oci_ref
        layers = [
            described(
                media.NYDUS_BLOB, p.blob.digest, p.blob.size,
                {media.BLOB: "true", **({media.REF: p.source.digest} if zran else {})},
            )
            for p in packed
        ]  # fmt: skip
        if zran:
            return layers
        known = {layer["digest"].removeprefix("sha256:") for layer in layers}
        for blob_id in ids:
            if blob_id in known or self.chunk_dict is None:
                continue
            known.add(blob_id)
            blob = self.chunk_dict.blob(blob_id)
            layers.append(
                described(media.NYDUS_BLOB, blob.digest, blob.size, {media.BLOB: "true"})
            )
        return layers

    def _document(
        self, document: Document, source: Mapping[str, Any], config: Mapping[str, Any],
        blobs: list[dict[str, Any]], bootstrap: StoredLayer,
    ) -> Document:  # fmt: skip
        docker = document.media_type in media.DOCKER and not self.shape.oci
        notes = {media.BOOTSTRAP: "true", media.FS_VERSION: self.naming.fs_version}
        from_dict = [_DICTIONARY_HISTORY] * max(0, len(blobs) - len(source["layers"]))
        history = [*history_of(config), *from_dict, BOOTSTRAP_HISTORY]
        if self.shape.detached:
            blobs, history = [], [BOOTSTRAP_HISTORY]
            notes[media.UNCOMPRESSED] = bootstrap.diff_id
        last = described(
            media.DOCKER_LAYER_GZIP if docker else media.OCI_LAYER_GZIP,
            bootstrap.digest, bootstrap.size, notes,
        )  # fmt: skip
        diff_ids = [*(blob["digest"] for blob in blobs), bootstrap.diff_id]
        kind = media.DOCKER_CONFIG if docker else media.OCI_CONFIG
        return manifest(
            media.DOCKER_MANIFEST if docker else media.OCI_MANIFEST,
            store_config(self.images, kind, config, diff_ids, history),
            self._annotated([*blobs, last]),
            self.naming.annotations(source),
            subject=document.descriptor if self.shape.referrer else None,
        )  # fmt: skip

    def _annotated(self, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Any digest will do that stays the same: the layer's own (docs/runtimes.md)."""
        if not self.shape.toc_digest:
            return layers
        return [
            described(
                one["mediaType"], one["digest"], one["size"],
                {**one.get("annotations", {}), media.TOC_DIGEST: one["digest"]},
            )
            for one in layers
        ]  # fmt: skip


def bring_dictionary(
    converted: Document, chunk_dict: ChunkDict | None, mover_of: Callable[[BlobStore], Mover]
) -> None:
    """The blobs of the dictionary that the image uses come to the target, too."""
    if chunk_dict is None or chunk_dict.store is None:
        return
    layers = [descriptor(e) for e in list_of(converted.json, "layers")]
    used = [chunk_dict.blobs[layer.hex] for layer in layers if layer.hex in chunk_dict.blobs]
    mover_of(chunk_dict.store).all(used)


def check_type(document: Document) -> None:
    """``BadImage`` for what is not an image that can be converted."""
    if document.media_type in media.DOCKER_SCHEMA_1 or document.json.get("schemaVersion") == 1:
        raise BadImage(
            "the image has a manifest of docker schema 1, which is not supported",
            hint="pull and push it with a current docker, skopeo or crane: they make schema 2",
        )
    if document.media_type not in media.MANIFESTS:
        raise BadImage(
            f"a manifest of the unknown type {document.media_type!r}", hint="is this an image?"
        )


def check_layers(layers: Sequence[Descriptor]) -> None:
    if not layers:
        raise BadImage("the image has no layers", hint="is this an image of a container?")
    if len(layers) > _MAX_LAYERS:
        raise BadImage(f"the image has {len(layers)} layers; {_MAX_LAYERS} are allowed")
    for layer in layers:
        kind = layer.media_type
        if "encrypted" in kind:
            raise BadImage(
                f"layer {layer.digest} is encrypted ({kind})",
                hint="decrypt the image first: skopeo copy --decryption-key KEY …",
            )
        if "nondistributable" in kind or "foreign" in kind:
            raise BadImage(
                f"layer {layer.digest} is foreign ({kind}): its data are not in the registry",
                hint="push the image with its foreign layers (allow-nondistributable-artifacts)",
            )
        if kind not in media.TARS:
            raise BadImage(
                f"layer {layer.digest} is of the unknown type {kind!r}",
                hint="only layers of containers (tar, gzip, zstd) can be converted",
            )


def platform_of(config: Mapping[str, Any]) -> dict[str, str]:
    """As an index says it."""
    found = {"architecture": str(config.get("architecture") or "")}
    found["os"] = str(config.get("os") or "")
    if config.get("variant"):
        found["variant"] = str(config["variant"])
    return found

