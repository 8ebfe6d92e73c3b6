"""Is an image right?  Its manifest, its bootstrap, and its files against the source's.

Reads registries only: no mount, no root, no unpacked tree.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from nydus_fscache.convert.chunk_dict import output_blobs
from nydus_fscache.convert.documents import go_json, parse_config
from nydus_fscache.convert.errors import ConvertError
from nydus_fscache.convert.image import check_type
from nydus_fscache.convert.platforms import Platform, host, is_attestation
from nydus_fscache.convert.trees import Tree, tree_of_layers, tree_of_rafs
from nydus_fscache.errors import BadImage
from nydus_fscache.registry import media
from nydus_fscache.registry.inflate import Inflate
from nydus_fscache.registry.layer import LAYER_LIMIT, extract_bootstrap
from nydus_fscache.registry.manifest import (
    NYDUS_OS_FEATURE,
    Descriptor,
    config_of,
    descriptor,
    list_of,
)
from nydus_fscache.registry.store import BlobStore, Document, ImageStore, digest_of, read_blob
from rafs_v6.errors import RafsError
from rafs_v6.values import dataclass

log = logging.getLogger("checker")

_PLAIN_LIMIT = 2 << 30


class CheckFailed(ConvertError):
    """The image is not what it should be; the message says how."""


@dataclass(slots=True)
class Part:
    """One manifest with its config."""

    document: Document
    config: dict[str, Any]
    layers: list[Descriptor]

    @property
    def diff_ids(self) -> list[str]:
        rootfs = self.config.get("rootfs")
        found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        return [str(d) for d in found] if isinstance(found, list) else []


@dataclass(slots=True)
class Side:
    """The source or the target: what a name stands for on one platform.

    ``blobs``: where the data of the Nydus image are; ``store``: everything else.
    """

    name: str
    label: str  # source or target
    store: ImageStore
    blobs: BlobStore
    oci: Part | None = None
    nydus: Part | None = None
    boot: bytes = field(default=b"", repr=False)
    index: Document | None = None


def parse(side: Side, name: str, platform: Platform) -> Side:
    """Fill ``side``; ``BadImage`` when there is nothing for ``platform``."""
    log.info("parsing image", extra={"fields": {"image": side.name}})
    document = side.store.manifest(name)
    if document.media_type not in media.INDEXES:
        check_type(document)
        _take(side, document)
        return side
    side.index = document
    for entry in list_of(document.json, "manifests"):
        if is_attestation(entry) or not platform.fits(entry):
            continue
        found = entry.get("platform")
        if not isinstance(found, dict):
            log.warning("Will cook a image without platform, %s", entry.get("digest"))
        one = side.store.manifest(descriptor(entry).digest)
        check_type(one)
        _take(side, one, nydus=_says_nydus(entry))
    if side.oci is None and side.nydus is None:
        raise BadImage(f"{side.name} has no image for {platform}")
    return side


def _says_nydus(entry: Mapping[str, Any]) -> bool:
    found = entry.get("platform")
    features = found.get("os.features") if isinstance(found, dict) else None
    listed = isinstance(features, list) and NYDUS_OS_FEATURE in features
    return entry.get("artifactType") == media.NYDUS_MANIFEST or listed


def _take(side: Side, document: Document, *, nydus: bool = False) -> None:
    found = document.json
    layers = [descriptor(e) for e in list_of(found, "layers")]
    config = parse_config(read_blob(side.store, config_of(found)))
    part = Part(document, config, layers)
    if nydus or (layers and layers[-1].marked("nydus-bootstrap")):
        side.nydus = part
    else:
        side.oci = part


class Checker:
    """``directory``: gets ``source`` and ``target`` with what was looked at, for people."""

    def __init__(
        self, source: Side | None, target: Side, directory: Path, stopped: Callable[[], bool],
        run_builder: Callable[[Sequence[str]], None],
    ) -> None:  # fmt: skip
        self._source, self._target = source, target
        self._directory, self._stopped = directory, stopped
        self._run_builder = run_builder

    def run(self) -> None:
        """``CheckFailed``, or another error, at the first thing that is wrong."""
        for side in filter(None, (self._source, self._target)):
            self._dump(side)
        for rule, check in (
            ("manifest", self._manifests),
            ("bootstrap", self._bootstraps),
            ("filesystem", self._files),
        ):
            try:
                check()
            except (CheckFailed, BadImage, RafsError) as e:
                raise CheckFailed(f"validate {rule} failed: {e}") from e
        log.info("verified image", extra={"fields": {"image": self._target.name}})

    # -- what people may want to look at ------------------------------------------------------

    def _dump(self, side: Side) -> None:
        directory = self._directory / side.label
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        kind = "nydus" if side.nydus else "oci" if side.oci else "unknown"
        log.info("dumping manifest", extra={"fields": {"image": side.name, "type": kind}})
        for prefix, part in (("oci", side.oci), ("nydus", side.nydus)):
            if part is not None:
                _write(directory / f"{prefix}_manifest.json", part.document.json)
                _write(directory / f"{prefix}_config.json", part.config)
        if side.index is not None:
            _write(directory / f"{kind}_index.json", side.index.json)
        if side.nydus is not None:
            self._pull_bootstrap(side, directory)

    def _pull_bootstrap(self, side: Side, directory: Path) -> None:
        log.info("pulling bootstrap", extra={"fields": {"image": side.name}})
        assert side.nydus is not None
        layer = side.nydus.layers[-1]
        data = read_blob(side.store, layer, LAYER_LIMIT)
        diff_id = digest_of(_plain(data))
        expected = (side.nydus.diff_ids or [""])[-1]
        if diff_id != expected:
            raise CheckFailed(
                f"invalid bootstrap layer diff id: {diff_id} (calculated) != {expected}"
                " (in image config)"
            )
        side.boot = extract_bootstrap(data)
        image = directory / "nydus_bootstrap" / "image"
        image.mkdir(parents=True)
        (image / "image.boot").write_bytes(side.boot)

    # -- rules ------------------------------------------------------------------------------

    def _manifests(self) -> None:
        log.info("checking manifest")
        for side in filter(None, (self._source, self._target)):
            for part, check in ((side.oci, _check_oci), (side.nydus, _check_nydus)):
                if part is not None:
                    try:
                        check(part)
                    except CheckFailed as e:
                        raise CheckFailed(f"{side.label} image: {e}") from e
        if self._source is not None:
            self._compare_configs(self._source, self._target)

    def _compare_configs(self, source: Side, target: Side) -> None:
        before = source.oci or source.nydus
        assert before is not None
        for after in filter(None, (target.oci, target.nydus)):
            if _run_config(before.config) != _run_config(after.config):
                raise CheckFailed(
                    "validate image config: source image config should be equal with target image"
                    " config"
                )

    def _bootstraps(self) -> None:
        log.info("checking bootstrap")
        for side in filter(None, (self._source, self._target)):
            if side.nydus is None:
                continue
            try:
                self._check_bootstrap(side, side.nydus)
            except (ConvertError, RafsError) as e:
                raise CheckFailed(f"{side.label} image: invalid nydus bootstrap: {e}") from e

    def _check_bootstrap(self, side: Side, part: Part) -> None:
        directory = self._directory / side.label
        output = directory / "nydus_output.json"
        boot = directory / "nydus_bootstrap" / "image" / "image.boot"
        self._run_builder(
            ["check", "--log-level", "warn", "--output-json", str(output), "--bootstrap", str(boot)]
        )
        ids = output_blobs(output)
        # The table names the gzip layer that a zran blob refers to, not the blob.
        layers = [
            layer.annotations.get(media.REF, layer.digest).removeprefix("sha256:")
            for layer in part.layers[:-1]
        ]
        missing = [blob_id for blob_id in ids if blob_id not in layers]
        if layers and missing:
            raise CheckFailed(
                f"nydus blobs in the blob table of bootstrap({len(ids)}) should all appear in the"
                f" layers of manifest({len(layers)}), {', '.join(missing)} do not"
            )

    def _files(self) -> None:
        source = self._source
        if source is None:
            return
        log.info("comparing filesystem")
        before = self._tree(source, source.oci, source.nydus)
        target = self._target
        # Both halves of a merged image are looked at, not the one that is found first.
        for oci, nydus in ((target.oci, None), (None, target.nydus)):
            if oci is not None or nydus is not None:
                compare(before, self._tree(target, oci, nydus))

    def _tree(self, side: Side, oci: Part | None, nydus: Part | None) -> Tree:
        log.info("reading image", extra={"fields": {"image": side.name}})
        if oci is not None:
            return tree_of_layers(side.store, oci.layers, self._stopped)
        assert nydus is not None
        return tree_of_rafs(side.boot, side.blobs, self._stopped)


def _check_oci(part: Part) -> None:
    count = len(part.diff_ids)
    if count != len(part.layers):
        raise CheckFailed(
            "invalid OCI image manifest: invalid diff ids in image config:"
            f" {count} (diff ids) != {len(part.layers)} (layers)"
        )


def _check_nydus(part: Part) -> None:
    blobs, last = part.layers[:-1], part.layers[-1] if part.layers else None
    for blob in blobs:
        if blob.media_type != media.NYDUS_BLOB or blob.annotations.get(media.BLOB) != "true":
            raise CheckFailed("invalid blob layer in nydus image manifest")
    if last is None or last.annotations.get(media.BOOTSTRAP) != "true":
        raise CheckFailed("invalid bootstrap layer in nydus image manifest")
    count = len(part.diff_ids)
    if count != len(part.layers):
        raise CheckFailed(
            "invalid Nydus image manifest: invalid diff ids in image config:"
            f" {count} (diff ids) != {len(part.layers)} (layers)"
        )


def compare(source: Tree, target: Tree) -> None:
    """``CheckFailed`` with the first difference in the order of the paths."""
    for path in sorted(source.keys() | target.keys()):
        before, after = source.get(path), target.get(path)
        if before is None:
            raise CheckFailed(f"file not found in source image: {path}")
        if after is None:
            raise CheckFailed(f"file not found in target image: {path}")
        if before != after:
            raise CheckFailed(
                f"file not match in target image:\n\t[source] {before.shown(path)}\n"
                f"\t[target] {after.shown(path)}"
            )


def _run_config(config: Mapping[str, Any]) -> bytes:
    """What a container gets: without what Docker alone knows."""
    inner = config.get("config")
    inner = inner if isinstance(inner, dict) else {}
    keys = (
        "User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels",
        "StopSignal",
    )  # fmt: skip
    kept = {key: inner[key] for key in keys if inner.get(key)}
    return json.dumps(kept, sort_keys=True).encode()


def _plain(data: bytes) -> bytes:
    inflate = Inflate()
    out = bytearray()
    for piece in inflate.feed(data):
        out += piece
        if len(out) > _PLAIN_LIMIT:
            raise BadImage("the bootstrap layer unpacks to far too much", hint="a hostile image?")
    inflate.end()
    return bytes(out)


def _write(path: Path, document: object) -> None:
    path.write_bytes(go_json(document, indent=True))


def platform_for(text: str) -> Platform:
    """As ``check`` takes it: linux/amd64 or linux/arm64."""
    if not text:
        return host()
    words = text.split("/")
    if len(words) != 2:
        raise CheckFailed(f"invalid platform format, {text}")
    if words[0] != "linux":
        raise CheckFailed(f"not support os {words[0]}")
    if words[1] not in ("amd64", "arm64"):
        raise CheckFailed(f"not support architecture {words[1]}")
    return Platform(words[0], words[1])


