"""From Nydus back to OCI: each blob becomes the layer that it was made of.

Every chunk is verified; a layer that does not read ends the run with nothing pushed
under the target's name.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import rafs_v6
from nydus_fscache.convert.bootstrap_layer import gzip_pieces
from nydus_fscache.convert.documents import (
    BOOTSTRAP_HISTORY,
    annotations_of,
    described,
    history_of,
    manifest,
    parse_config,
    store_config,
)
from nydus_fscache.convert.errors import ConvertError, Stopped
from nydus_fscache.convert.image import check_type
from nydus_fscache.convert.move import whole_if_refused
from nydus_fscache.convert.platforms import choose
from nydus_fscache.convert.progress import Progress
from nydus_fscache.convert.run import Request, open_local
from nydus_fscache.convert.workdir import WorkDir
from nydus_fscache.errors import BadImage, UsageError
from nydus_fscache.registry import media
from nydus_fscache.registry.access import Registries
from nydus_fscache.registry.layout import FileWriter
from nydus_fscache.registry.manifest import Descriptor, config_of, descriptor, nydus_image
from nydus_fscache.registry.repository import Repository
from nydus_fscache.registry.store import BlobStore, Document, ImageStore, copy_blob, read_blob
from rafs_v6.errors import RafsError
from rafs_v6.tools.unpack import unpack

log = logging.getLogger("converter")

_OCI_NOTES = (media.FS_VERSION, media.SOURCE_DIGEST, media.SOURCE_REFERENCE, media.BUILDER_VERSION)


class Reversal:
    """``run`` once."""

    def __init__(
        self, request: Request, registries: Registries, *, stop: threading.Event,
        progress: Progress,
    ) -> None:  # fmt: skip
        self._request, self._registries = request, registries
        self._stop, self._progress = stop, progress

    def run(self) -> None:
        request = self._request
        if request.target.path is not None:
            raise UsageError("--reverse writes to a registry", hint="nydusify copy makes archives")
        with ExitStack() as stack:
            work = stack.enter_context(WorkDir(request.work_dir)).path
            source = self._source(work)
            stack.callback(source.close)
            name = str(request.source.name)
            log.info("pulling image %s", name)
            document = source.manifest(request.source.name.reference.manifest or "latest")
            if document.media_type in media.INDEXES:
                (entry, *more) = choose(
                    document.json, request.platforms, every=request.all_platforms, name=name
                )
                if more:
                    raise UsageError("--reverse takes one platform", hint="--platform linux/amd64")
                document = source.manifest(descriptor(entry).digest)
            target = self._registries.open(request.target.name, request.target.trust)
            log.info("converting image %s", name)
            made = self._convert(source, target, document, work)
            log.info("pushing image %s", request.target.name)
            reference = request.target.name.reference
            target.put_manifest(reference.tag or made.digest, made)
            log.info("pushed image %s", request.target.name)

    def _source(self, work: Path) -> ImageStore:
        place = self._request.source
        if place.path is not None:
            return open_local(place.path, work)
        return self._registries.open(place.name, place.trust)

    def _convert(
        self, source: ImageStore, target: Repository, document: Document, work: Path
    ) -> Document:
        check_type(document)
        image = nydus_image(document.json, str(self._request.source.name))
        config = parse_config(read_blob(source, config_of(document.json)))
        layers, diff_ids = [], []
        for blob in image.blobs:
            if self._stop.is_set():
                raise Stopped("stopped")
            made = whole_if_refused(target, work)(self._layer)
            layer, diff_id = self._request.attempts.run(
                partial(made, source, target, blob, work), self._stop
            )
            layers.append(layer)
            diff_ids.append(diff_id)
        history = [
            h
            for h in history_of(config)
            if h.get("comment") != BOOTSTRAP_HISTORY["comment"]
        ]
        notes = {
            k: v for k, v in annotations_of(document.json).items() if k not in _OCI_NOTES
        }
        place = store_config(target, media.OCI_CONFIG, config, diff_ids, history)
        return manifest(media.OCI_MANIFEST, place, layers, notes)

    def _layer(
        self, source: BlobStore, target: Repository, blob: Descriptor, work: Path
    ) -> tuple[dict[str, object], str]:
        if media.REF in blob.annotations:
            raise BadImage(
                f"blob {blob.digest} refers to the OCI layer {blob.annotations[media.REF]}",
                hint="the image it was converted from is that image: copy it",
            )
        task = self._progress.begin(f"blob {blob.hex[:12]}", blob.size)
        directory = work / "reverse"
        copy_blob(source.open_blob(blob.digest, blob.size), FileWriter(directory), blob)
        path = directory / blob.hex
        plain, packed = hashlib.sha256(), hashlib.sha256()
        size = 0
        writer = target.writer()
        try:
            for piece in gzip_pieces(_Tar(path, self._stop), plain):
                packed.update(piece)
                size += len(piece)
                writer.write(piece)
            digest = f"sha256:{packed.hexdigest()}"
            writer.finish(digest)
        except RafsError as e:
            raise BadImage(f"blob {blob.digest} cannot be unpacked: {e}") from e
        finally:
            writer.abort()
            shutil.rmtree(directory, ignore_errors=True)
        task.end("converted")
        return described(media.OCI_LAYER_GZIP, digest, size), f"sha256:{plain.hexdigest()}"


class _Tar:
    """The tar of a blob's own bootstrap, piece by piece: unpacking runs beside its reader."""

    def __init__(self, path: Path, stop: threading.Event) -> None:
        self._path, self._stop = path, stop

    def __iter__(self) -> Iterator[bytes]:
        pieces: queue.Queue[bytes | BaseException | None] = queue.Queue(8)

        def put(piece: bytes | BaseException | None) -> None:
            while True:
                if self._stop.is_set():
                    raise Stopped("stopped")
                try:
                    pieces.put(piece, timeout=0.2)
                    return
                except queue.Full:
                    continue

        def work() -> None:
            try:
                with rafs_v6.open(self._path) as image:
                    missed = unpack(image, image.source, lambda data: put(bytes(data)))
                if missed:
                    raise ConvertError(f"a tar cannot hold the socket {missed[0]!r}")
                put(None)
            except Stopped:
                return
            except BaseException as e:
                put(e)

        thread = threading.Thread(target=work, name="unpack", daemon=True)
        thread.start()
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
        thread.join()
