"""A whole conversion: from a source to a target, registry, layout or archive.

The target's name appears last, when all below it is there; nothing else becomes
visible.  On every way out, own temporary data are gone.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import field, replace
from pathlib import Path

from nydus_fscache.convert import cache as build_cache
from nydus_fscache.convert import chunk_dict
from nydus_fscache.convert.blob_backend import make_blob_store
from nydus_fscache.convert.builder import Builder
from nydus_fscache.convert.image import ImageConverter, Naming, Shape, bring_dictionary, check_type
from nydus_fscache.convert.index import Pair, index_of, merged_index, selected_size
from nydus_fscache.convert.journal import Blob, Journal
from nydus_fscache.convert.layer import Packer, PackOptions
from nydus_fscache.convert.move import Attempts, Mover
from nydus_fscache.convert.platforms import Platform, choose
from nydus_fscache.convert.progress import Progress, Silent
from nydus_fscache.convert.workdir import WorkDir
from nydus_fscache.errors import BackendError, BadImage, UsageError
from nydus_fscache.registry import media
from nydus_fscache.registry.access import Registries, Trust
from nydus_fscache.registry.archive import Archive, pack
from nydus_fscache.registry.image_name import ImageName
from nydus_fscache.registry.layout import Layout
from nydus_fscache.registry.manifest import Descriptor, descriptor
from nydus_fscache.registry.store import BlobStore, Document, ImageStore
from rafs_v6.values import dataclass

log = logging.getLogger("converter")

_LAYERS = 2  # at once: each builder uses all processors itself, and has 45 MB


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image is, or is to be: in a registry, or in ``path`` (a layout or an archive).

    ``layout``: a new one is to be a layout; a directory that is there is one anyway.
    """

    name: ImageName
    trust: Trust = field(default_factory=Trust)
    path: Path | None = None
    layout: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """All that a conversion is told.  ``backend``: type and options of the blobs' store."""

    source: Place
    target: Place
    work_dir: Path = Path("tmp")
    pack: PackOptions = field(default_factory=PackOptions)
    platforms: tuple[Platform, ...] = ()
    all_platforms: bool = False
    merge_platform: bool = False
    oci: bool = False
    referrer: bool = False
    toc_digest: bool = False
    nydus_image: str = ""
    chunk_dict: str = ""
    chunk_dict_trust: Trust = field(default_factory=Trust)
    cache: ImageName | None = None
    cache_trust: Trust = field(default_factory=Trust)
    cache_records: int = 200
    backend: tuple[str, dict[str, object]] | None = None
    backend_force: bool = False
    attempts: Attempts = field(default_factory=Attempts)


@dataclass(slots=True)
class Report:
    """Sizes in bytes, times in nanoseconds: the members of --output-json."""

    source_size: int = 0
    target_size: int = 0
    pull_ns: int = 0
    conversion_ns: int = 0
    push_ns: int = 0

    def document(self) -> dict[str, int]:
        return {
            "SourceImageSize": self.source_size,
            "TargetImageSize": self.target_size,
            "SourcePullElapsed": self.pull_ns,
            "ConversionElapsed": self.conversion_ns,
            "TargetPushElapsed": self.push_ns,
        }


class Conversion:
    """``run`` once.  ``stop`` may be set from anywhere: the run then ends soon, as an error."""

    def __init__(
        self, request: Request, registries: Registries, *, stop: threading.Event,
        progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self._request, self._registries = request, registries
        self._stop, self._progress = stop, progress or Silent()
        self._report = Report()

    def run(self) -> Report:
        request = self._request
        with ExitStack() as stack:
            work = stack.enter_context(WorkDir(request.work_dir))
            journal = Journal(request.work_dir)
            stack.callback(journal.remove)
            source = self._source(work.path)
            stack.callback(source.close)
            images, publish = self._target(work.path)
            self._convert(source, images, publish, work.path, journal, stack)
        return self._report

    def _source(self, work: Path) -> ImageStore:
        place = self._request.source
        if place.path is None:
            return self._registries.open(place.name, place.trust)
        log.info("importing source image from %s", place.path)
        return open_local(place.path, work)

    def _target(self, work: Path) -> tuple[ImageStore, Callable[[Document], None]]:
        """The store, and the act that makes its content visible under the target's name."""
        place = self._request.target
        if place.path is None:
            repository = self._registries.open(place.name, place.trust)
            reference = place.name.reference
            tag = reference.tag or reference.digest
            log.debug("target %s", place.name)
            return repository, lambda document: repository.put_manifest(tag, document)
        if place.layout or place.path.is_dir():
            layout = Layout(place.path, name=str(place.name))
            tag = place.name.reference.tag or "latest"
            return layout, lambda document: layout.put_manifest(tag, document)
        path, inside = place.path, Layout(work / "layout", name=str(place.name))

        def export(document: Document) -> None:
            inside.put_manifest(document.digest, document)
            pack(inside, str(place.name), document, path)

        return inside, export

    def _convert(
        self, source: ImageStore, images: ImageStore, publish: Callable[[Document], None],
        work: Path, journal: Journal, closing: ExitStack,
    ) -> None:  # fmt: skip
        request, report = self._request, self._report
        cached = self._import_cache(images)
        log.info("pulling image %s", request.source.name)
        if request.source.path is None:
            log.info("pulling source image from %s", request.source.name)
        started = time.monotonic_ns()
        reference = request.source.name.reference
        document = source.manifest(reference.manifest or "latest")
        chosen = self._choose(source, document)
        report.source_size = sum(selected_size(one) for _, one in chosen)
        report.pull_ns = time.monotonic_ns() - started
        log.info("pulled image %s %s", request.source.name, _elapsed(cached, report.pull_ns))
        log.info("converting image %s", request.source.name)
        started = time.monotonic_ns()
        converter = self._converter(source, images, work, journal, cached, document)
        if converter.packer.target is not images:
            closing.callback(converter.packer.target.close)
        pairs = []
        for entry, one in chosen:
            if len(chosen) > 1:
                converter.naming = replace(converter.naming, digest=one.digest)
            pairs.append(Pair(entry, one, converter.convert(one)))
        self._complete(converter, pairs, images, work, source)
        report.target_size = sum(selected_size(pair.converted.document) for pair in pairs)
        report.conversion_ns = time.monotonic_ns() - started
        log.info(
            "converted image %s %s", request.target.name, _elapsed(cached, report.conversion_ns)
        )
        self._push(document, pairs, source, images, publish, converter)
        self._export_cache(cached, images, pairs)

    def _choose(
        self, source: ImageStore, document: Document
    ) -> list[tuple[dict[str, object], Document]]:
        request = self._request
        if document.media_type not in media.INDEXES:
            check_type(document)
            return [({}, document)]
        name = str(request.source.name)
        entries = choose(
            document.json, request.platforms, every=request.all_platforms, name=name
        )
        chosen: list[tuple[dict[str, object], Document]] = []
        for entry in entries:
            place = descriptor(entry)
            if place.media_type in media.INDEXES:
                raise BadImage(f"{name} is an index of indexes", hint="name one by digest")
            chosen.append((entry, source.manifest(place.digest)))
        return chosen

    def _converter(
        self, source: ImageStore, images: ImageStore, work: Path, journal: Journal,
        cached: build_cache.Cache | None, document: Document,
    ) -> ImageConverter:  # fmt: skip
        request = self._request
        dictionary = self._dictionary(work)
        options = request.pack
        if dictionary is not None:
            options = replace(
                options, chunk_dict=dictionary.path, dict_digest=dictionary.digest
            )
        builder = Builder(request.nydus_image, options.prefetch, self._stop)
        version = builder.version()
        blobs: BlobStore = images
        if request.backend is not None:
            kind, config = request.backend
            blobs = make_blob_store(kind, config, work, force=request.backend_force)
        if cached is not None:
            cached.key = options.key(version)
        finder = build_cache.Finder(cached, blobs)

        def find(layer: Descriptor) -> Blob | None:
            return finder.find(layer)

        packer = Packer(
            source, blobs, builder, options, work, journal, find, self._stop, self._progress,
            request.attempts, version,
        )  # fmt: skip
        return ImageConverter(
            source, images, packer, self._mover(source, images, work), builder, work, self._stop,
            Shape(request.oci, request.backend is not None, request.referrer,
                  request.toc_digest, min(_LAYERS, os.cpu_count() or 1)),
            Naming(str(request.source.name), document.digest, options.fs_version, version),
            dictionary,
        )  # fmt: skip

    def _dictionary(self, work: Path) -> chunk_dict.ChunkDict | None:
        request = self._request
        if not request.chunk_dict:
            return None
        place, where = chunk_dict.parse(request.chunk_dict)
        if place == "local":
            return chunk_dict.local(Path(where))
        name = ImageName.parse(where)
        store = self._registries.open(name, request.chunk_dict_trust)
        return chunk_dict.pulled(store, name.reference.manifest, work)

    def _mover(self, source: BlobStore, target: BlobStore, work: Path) -> Mover:
        return Mover(
            source, target, work, self._stop, self._progress, self._request.attempts
        )

    def _complete(
        self, converter: ImageConverter, pairs: list[Pair], images: ImageStore, work: Path,
        source: ImageStore,
    ) -> None:  # fmt: skip
        """What results refer to without having made it: dictionaries' blobs, zran's layers."""
        for pair in pairs:
            bring_dictionary(
                pair.converted.document, converter.chunk_dict,
                lambda store: self._mover(store, converter.packer.target, work),
            )  # fmt: skip
            if self._request.pack.oci_ref:
                self._mover(source, images, work).all(p.source for p in pair.converted.layers)

    def _push(
        self, document: Document, pairs: list[Pair], source: ImageStore, images: ImageStore,
        publish: Callable[[Document], None], converter: ImageConverter,
    ) -> None:  # fmt: skip
        request, started = self._request, time.monotonic_ns()
        target = request.target
        log.info("pushing image %s", target.name)
        if target.path is None:
            log.info("pushing target image to %s", target.name)
        else:
            log.info("exporting target image to %s", target.path)
        if request.merge_platform:
            final = merged_index(document, pairs, source, images, converter.mover)
        elif len(pairs) == 1:
            final = pairs[0].converted.document
        else:
            for pair in pairs:
                made = pair.converted.document
                images.put_manifest(made.digest, made)
            final = index_of(document, pairs, oci=request.oci)
        request.attempts.run(lambda: publish(final), self._stop)
        self._report.push_ns = time.monotonic_ns() - started
        log.info("pushed image %s, elapse %s", target.name, seconds(self._report.push_ns))

    def _import_cache(self, images: ImageStore) -> build_cache.Cache | None:
        request = self._request
        if request.cache is None:
            return None
        if request.target.path is not None and request.backend is None:
            log.debug("a cache in a registry, a target in a file: blobs are downloaded")
        log.info("pulling cache %s", request.cache)
        store = self._registries.open(request.cache, request.cache_trust)
        return build_cache.pull(store, request.cache, request.cache_records)

    def _export_cache(
        self, cached: build_cache.Cache | None, images: ImageStore, pairs: list[Pair]
    ) -> None:
        if cached is None:
            return
        log.info("pushing cache %s", self._request.cache)
        try:
            build_cache.push(cached, images, [p for pair in pairs for p in pair.converted.layers])
        except BackendError as e:
            # The image is there: a cache only makes the next run faster.
            log.warning("the cache %s was not pushed: %s", self._request.cache, e)
        else:
            log.info("pushed cache %s", self._request.cache)


def open_local(path: Path, work: Path) -> Layout | Archive:
    """A layout's directory, or an archive."""
    if not path.exists():
        raise UsageError(f"source archive not accessible: {path}: no such file or directory")
    return Layout(path) if path.is_dir() else Archive(path, work)


def seconds(ns: int) -> str:
    """As Go prints durations, near enough for people."""
    value = ns / 1e9
    return f"{value:.3f}s" if value < 60 else f"{int(value // 60)}m{value % 60:.1f}s"


def _elapsed(cached: build_cache.Cache | None, ns: int) -> str:
    note = f"(cached {cached.hits}/{cached.asked})" if cached is not None else ""
    return f"{note}, elapse {seconds(ns)}"
