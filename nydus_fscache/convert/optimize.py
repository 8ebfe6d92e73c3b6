"""An image with one more blob of the data that its start reads, fetched before all else."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rafs_v6
from nydus_fscache.convert.bootstrap_layer import Entry, store_layer
from nydus_fscache.convert.builder import OWN, Builder, secret_file
from nydus_fscache.convert.chunk_dict import output_blobs
from nydus_fscache.convert.documents import (
    annotations_of,
    as_json,
    described,
    history_of,
    manifest,
    parse_config,
    store_config,
)
from nydus_fscache.convert.move import Mover, with_originals
from nydus_fscache.errors import BadImage, UsageError
from nydus_fscache.registry import media
from nydus_fscache.registry.layer import LAYER_LIMIT, extract_bootstrap
from nydus_fscache.registry.layout import FileStream
from nydus_fscache.registry.manifest import Descriptor, config_of, nydus_image
from nydus_fscache.registry.store import Document, ImageStore, copy_blob, read_blob

log = logging.getLogger("converter")

LIST_LIMIT = 64 << 20


def paths_of(data: bytes, boot: bytes) -> list[str]:
    """The files of a list (one path a line), of the original's JSON, or of a trace."""
    text = data.decode("utf-8", "surrogateescape")
    if not text.lstrip().startswith("{"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        document = json.loads(text)
        if "accesses" in document:
            return _traced(document["accesses"], boot)
        return [str(file["path"]) for file in document["files"]]
    except (ValueError, KeyError, TypeError) as e:
        raise UsageError(f"--prefetch-files is neither a list nor a trace: {e}") from e


def _traced(rows: Iterable[Sequence[Any]], boot: bytes) -> list[str]:
    """The files that the chunks of a trace belong to, in its order."""
    places: dict[tuple[str, int], list[str]] = {}
    with rafs_v6.open(boot) as image:
        blobs = image.bootstrap.blobs
        for path, inode in image.walk():
            if inode.is_reg:
                for ref in image.bootstrap.chunks(inode):
                    key = blobs[ref.blob_index].blob_id, ref.chunk_index
                    places.setdefault(key, []).append(path.decode("utf-8", "surrogateescape"))
        most = sum(info.chunk_count for info in blobs)
    found: dict[str, None] = {}
    for blob, _unit, _ms, first, count in rows:
        for chunk in range(int(first), int(first) + min(int(count), most)):
            for name in places.get((str(blob), chunk), []):
                found[name] = None
    return list(found)


def optimize(
    source: ImageStore, target: ImageStore, document: Document, name: str, listed: bytes,
    builder: Builder, backend: tuple[str, Mapping[str, Any]], mover: Mover, work: Path,
) -> Document:  # fmt: skip
    """The new manifest; all below it is in ``target``."""
    image = nydus_image(document.json, name)
    config_place = config_of(document.json)
    config = parse_config(read_blob(source, config_place))
    boot = extract_bootstrap(read_blob(source, image.bootstrap, LAYER_LIMIT))
    paths = paths_of(listed, boot)
    if not paths:
        raise UsageError("no files to prefetch", hint="--prefetch-files names them")
    log.info("begin to build new prefetch blob and bootstrap")
    before, after, files = work / "image.boot", work / "new.boot", work / "prefetch.files"
    blobs = work / "blobs"
    blobs.mkdir()
    before.write_bytes(boot)
    own = builder.command == OWN
    plain = "".join(f"{path}\n" for path in paths if "\n" not in path)
    files.write_bytes(plain.encode("utf-8", "surrogateescape") if own else listed)
    words = [
        "optimize", "--log-level", "warn", "--prefetch-files", str(files),
        "--bootstrap", str(before), "--output-blob-dir", str(blobs),
        "--output-bootstrap", str(after), "--output-json", str(work / "optimized.json"),
        "--backend-type", backend[0],
    ]  # fmt: skip
    with secret_file(work / "backend.json", backend[1]) as secret:
        # The original's words, where its builder may be another version.
        text = ["--backend-config", json.dumps(backend[1])]
        builder.run([*words, *(["--backend-config-file", str(secret)] if own else text)])
    hexed = output_blobs(work / "optimized.json")[-1]
    made = blobs / hexed
    if not made.is_file():
        raise BadImage("the builder made no prefetch blob", hint="are the files in the image?")
    log.info("build success for prefetch blob : %s", hexed)
    blob = Descriptor(media.NYDUS_BLOB, f"sha256:{hexed}", made.stat().st_size, {})
    if target.has_blob(blob.digest) is None:
        mover.stored(
            lambda: copy_blob(FileStream(made.open("rb"), blob.size), target.writer(), blob)
        )
    mover.all(with_originals(source, image.blobs))
    entries = [
        Entry("image", 0o755),
        Entry("image/image.boot", 0o444, after),
        Entry("image/prefetch.files", 0o444, files),
    ]
    layer = mover.stored(lambda: store_layer(target, entries))
    notes = {**image.bootstrap.annotations, media.PREFETCH_BLOB: hexed}
    layers = [
        *(as_json(one) for one in image.blobs),
        described(media.NYDUS_BLOB, blob.digest, blob.size, {media.BLOB: "true"}),
        described(image.bootstrap.media_type, layer.digest, layer.size, notes),
    ]
    diff_ids = [*(str(one["digest"]) for one in layers[:-1]), layer.diff_id]
    place = store_config(target, config_place.media_type, config, diff_ids, history_of(config))
    return manifest(document.media_type, place, layers, annotations_of(document.json))
