"""A container's changes become an image: layers above the one that it was started from.

Everything is in the target before the manifest is returned; the base image is not changed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from nydus_fscache.convert.bootstrap_layer import Entry, store_layer
from nydus_fscache.convert.builder import Builder
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
from nydus_fscache.convert.errors import ConvertError
from nydus_fscache.convert.move import Mover, with_originals
from nydus_fscache.registry import media
from nydus_fscache.registry.layer import LAYER_LIMIT, extract_bootstrap
from nydus_fscache.registry.manifest import Descriptor, NydusImage, config_of, nydus_image
from nydus_fscache.registry.store import Document, ImageStore, read_blob
from rafs_v6.reader.bootstrap import Bootstrap
from rafs_v6.values import dataclass

log = logging.getLogger("converter")

_COMPRESSORS = ("none", "lz4_block", "zstd")
_HISTORY = {"created_by": "nydusify commit", "comment": "Nydus Blob Layer"}


@dataclass(frozen=True, slots=True)
class Changes:
    """``name``: for people.  ``tar``: makes the layer's tar, once."""

    name: str
    tar: Callable[[], Iterator[bytes]]


@dataclass(slots=True)
class Commit:
    """``paused``: while it is entered, nobody writes to what the changes are read from."""

    source: ImageStore
    target: ImageStore
    builder: Builder
    mover: Mover
    work: Path
    paused: Callable[[], AbstractContextManager[object]]
    most: int = 400

    def run(self, document: Document, name: str, changes: list[Changes]) -> Document:
        """The new manifest."""
        image = nydus_image(document.json, name)
        before = self._committed(image)
        config_place = config_of(document.json)
        config = parse_config(read_blob(self.source, config_place))
        ids = diff_ids_of(config, len(document.json["layers"]))
        boot = self.work / "base.boot"
        boot.write_bytes(extract_bootstrap(read_blob(self.source, image.bootstrap, LAYER_LIMIT)))
        words = _options_of(boot)
        # All that takes long and does not need the container to stand still.
        log.info("pushing %d blobs of the base image", len(image.blobs))
        self.mover.all(with_originals(self.source, image.blobs))
        made: list[Descriptor] = []
        with self.paused():
            for number, one in enumerate(changes):
                log.info("committing %s", one.name)
                boot, blob = self.mover.stored(partial(self._layer, one, boot, words, number))
                made += [blob] if blob is not None else []
        entries = [Entry("image", 0o755), Entry("image/image.boot", 0o444, boot)]
        layer = self.mover.stored(lambda: store_layer(self.target, entries))
        notes = dict(image.bootstrap.annotations)
        if made or before:
            notes[media.COMMIT_BLOBS] = ",".join([*before, *(blob.digest for blob in made)])
        blobs = [*(as_json(blob) for blob in image.blobs), *(_described(blob) for blob in made)]
        last = described(image.bootstrap.media_type, layer.digest, layer.size, notes)
        history = history_of(config)
        if history and history[-1] == BOOTSTRAP_HISTORY:
            history.pop()
        history += [*(_HISTORY for _ in made), BOOTSTRAP_HISTORY]
        diff_ids = [*ids[:-1], *(blob.digest for blob in made), layer.diff_id]
        kind = config_place.media_type
        place = store_config(self.target, kind, config, diff_ids, history)
        return manifest(
            document.media_type, place, [*blobs, last], annotations_of(document.json)
        )

    def _committed(self, image: NydusImage) -> list[str]:
        text = image.bootstrap.annotations.get(media.COMMIT_BLOBS, "")
        found = [digest for digest in text.split(",") if digest]
        if len(found) >= self.most:
            raise ConvertError(
                f"reached maximum committed times {self.most}",
                hint="convert the image anew, or raise --maximum-times",
            )
        return found

    def _layer(
        self, changes: Changes, boot: Path, words: list[str], number: int
    ) -> tuple[Path, Descriptor | None]:
        """The bootstrap with these changes, and their blob if they have data of their own."""
        directory = self.work / f"nydus-commit-{number}"
        directory.mkdir(exist_ok=True)  # it may be the second attempt
        after = directory / "bootstrap"
        writer = self.target.writer()
        sha256 = hashlib.sha256()
        size = 0

        def take(data: memoryview) -> None:
            nonlocal size
            sha256.update(data)
            writer.write(data)
            size += len(data)

        try:
            self.builder.pack(
                ["--type", "tar-rafs", "--whiteout-spec", "oci", "--fs-version", "6", *words,
                 "--parent-bootstrap", str(boot), "--bootstrap", str(after)],
                directory, changes.tar(), take,
            )  # fmt: skip
            if not size:
                return after, None
            digest = f"sha256:{sha256.hexdigest()}"
            writer.finish(digest)
        finally:
            writer.abort()
        return after, Descriptor(media.NYDUS_BLOB, digest, size, {})


def _options_of(boot: Path) -> list[str]:
    """As the base image was built."""
    found = Bootstrap.from_file(boot)
    compressors = [blob.compressor.name.lower() for blob in found.blobs]
    sizes = [blob.chunk_size for blob in found.blobs]
    words = ["--chunk-size", hex(sizes[-1])] if sizes else []
    fitting = [name for name in compressors if name in _COMPRESSORS]
    return [*words, "--compressor", fitting[-1] if fitting else "zstd"]


def _described(blob: Descriptor) -> dict[str, Any]:
    return described(blob.media_type, blob.digest, blob.size, {media.BLOB: "true"})
