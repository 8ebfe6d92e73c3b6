"""Pull an image into containerd so that a remote snapshotter can serve it lazily.

As containerd's own client does: resolve, take a lease, store index, manifest and configuration
with the labels that its garbage collection follows, then ask the snapshotter for each layer,
with the labels of the CRI (``pkg/snapshotters`` there).  Only layers that it does not have are
downloaded and unpacked: of a Nydus image that is the bootstrap's.  When anything fails, neither
image nor half a snapshot is left.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import secrets
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

from nydus_fscache.errors import BadImage, DaemonError
from nydus_fscache.registry.manifest import (
    Descriptor,
    choose_manifest,
    descriptor,
    is_index,
    list_of,
    parse_document,
)
from nydus_fscache.registry.media import MANIFESTS, SNAPSHOT
from nydus_fscache.registry.store import Document
from nydus_fscache.runtimes.containerd.origin import Origin
from nydus_fscache.runtimes.containerd.services import AlreadyThere, Containerd, Target
from rafs_v6.values import dataclass

log = logging.getLogger("rpull")

LEASE_H = 24  # as containerd's client: longer than any pull
LABEL_LIMIT = 4096  # bytes of a label, key and value (containerd, labels.Validate)
_CRI = f"{SNAPSHOT}cri."
_GC = "containerd.io/gc.ref."
_DOWNLOADS = 3  # at once, as containerd
_TRIES = 3  # a snapshot that came and went between two calls


@dataclass(frozen=True)
class Pulled:
    """``fetched``: digests of the layers that were downloaded."""

    target: Target
    fetched: tuple[str, ...]


def pull(
    containerd: Containerd,
    origin: Origin,
    snapshotter: str,
    architecture: str,
    labels: Mapping[str, str],
) -> Pulled:
    """Raises ``BackendError``, ``BadImage`` and ``DaemonError``."""
    lease = f"nydus-fscache-{secrets.token_hex(8)}"
    expires = (datetime.now(UTC) + timedelta(hours=LEASE_H)).strftime("%Y-%m-%dT%H:%M:%SZ")
    containerd.lease(lease, {"containerd.io/gc.expire": expires})
    try:
        return _Pull(containerd, origin, snapshotter, architecture).run(labels)
    finally:
        with contextlib.suppress(DaemonError):  # it expires by itself
            containerd.end_lease(lease)


class _Pull:
    def __init__(
        self, containerd: Containerd, origin: Origin, snapshotter: str, architecture: str
    ) -> None:
        self._containerd, self._origin = containerd, origin
        self._snapshotter, self._architecture = snapshotter, architecture
        domain, repo = origin.name.domain, origin.name.reference.repo
        self._source = {f"containerd.io/distribution.source.{domain}": repo}
        self._run = secrets.token_hex(6)
        self._fetched: list[str] = []

    def run(self, labels: Mapping[str, str]) -> Pulled:
        top, found, manifest = self._manifest()
        config = descriptor(_table(manifest, "config"))
        layers = [descriptor(layer) for layer in list_of(manifest, "layers")]
        body = self._origin.blob(config)
        diff_ids = _diff_ids(body)
        if len(diff_ids) != len(layers):
            raise BadImage(f"{len(layers)} layers, but {len(diff_ids)} diff_ids in the config")
        refs = {f"{_GC}content.l.{n}": layer.digest for n, layer in enumerate(layers)}
        refs[f"{_GC}content.config"] = config.digest
        self._store(_target(config), [body], self._source)
        self._store(_document_target(found), [found.body], {**self._source, **refs})
        if top is not None and not any(layer.marked("nydus-bootstrap") for layer in layers):
            chosen = {f"{_GC}content.m.0": found.digest}
            self._store(_document_target(top), [top.body], {**self._source, **chosen})
            target = _document_target(top)
        else:
            # of an index with both kinds containerd would run the other one
            target = _document_target(found)
        chain = self._unpack(found.digest, layers, diff_ids)
        self._containerd.label_content(
            config.digest, {f"{_GC}snapshot.{self._snapshotter}": chain}
        )
        self._containerd.put_image(str(self._origin.name), target, labels)
        return Pulled(target, tuple(self._fetched))

    def _manifest(self) -> tuple[Document | None, Document, dict[str, Any]]:
        """The index where there is one, the manifest for this machine, and what it says."""
        top = self._origin.manifest(self._origin.name.reference.manifest)
        if not is_index(top.json, top.media_type):
            return None, top, self._checked(top)
        chosen = choose_manifest(top.json, self._architecture)
        found = self._origin.manifest(chosen.digest)
        return top, found, self._checked(found)

    def _checked(self, found: Document) -> dict[str, Any]:
        if found.media_type not in MANIFESTS:
            raise BadImage(
                f"{self._origin.name} is a {found.media_type or 'document of no type'}",
                hint="an OCI image manifest or one of Docker, schema 2",
            )
        return found.json

    def _store(self, target: Target, data: list[bytes], labels: Mapping[str, str]) -> None:
        self._containerd.write(f"{self._run}-{target.digest}", target, data, labels)

    # -- layers

    def _unpack(self, manifest: str, layers: list[Descriptor], diff_ids: list[str]) -> str:
        """The name of the top snapshot."""
        chain = ""
        downloads: dict[str, Future[None]] = {}
        with ThreadPoolExecutor(_DOWNLOADS) as pool:
            try:
                for n, (layer, diff_id) in enumerate(zip(layers, diff_ids, strict=True)):
                    parent, chain = chain, chain_id(chain, diff_id)
                    labels = self._labels(manifest, layers[n:], chain)
                    prepared = self._prepare(chain, parent, labels)
                    if prepared is None:
                        continue
                    key, mounts = prepared
                    try:
                        # who has not this layer has none above it
                        for later in layers[n:]:
                            if later.digest not in downloads:
                                downloads[later.digest] = pool.submit(self._download, later)
                        downloads[layer.digest].result()
                        self._apply(layer, diff_id, chain, key, mounts, labels)
                    except BaseException:
                        with contextlib.suppress(DaemonError):
                            self._containerd.remove_snapshot(self._snapshotter, key)
                        raise
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        return chain

    def _prepare(
        self, chain: str, parent: str, labels: Mapping[str, str]
    ) -> tuple[str, list[bytes]] | None:
        """Key and mounts of a snapshot to unpack into; None when the snapshotter has the layer."""
        if self._containerd.has_snapshot(self._snapshotter, chain):
            return None
        for _ in range(_TRIES):
            key = f"extract-{secrets.token_hex(6)} {chain}"
            try:
                return key, self._containerd.prepare(self._snapshotter, key, parent, labels)
            except AlreadyThere:
                if self._containerd.has_snapshot(self._snapshotter, chain):
                    return None
        raise DaemonError(
            f"{self._snapshotter} says that it has {chain}, and does not",
            hint="see the snapshotter's log",
        )

    def _download(self, layer: Descriptor) -> None:
        target = _target(layer)
        if self._containerd.has_content(layer.digest):
            self._store(target, [], self._source)  # keeps it for this lease
            return
        log.info("fetching %s, %d bytes", layer.digest, layer.size)
        ref = f"{self._run}-{layer.digest}"
        self._containerd.write(ref, target, self._origin.pieces(layer), self._source)
        self._fetched.append(layer.digest)

    def _apply(
        self, layer: Descriptor, diff_id: str, chain: str, key: str, mounts: list[bytes],
        labels: Mapping[str, str],
    ) -> None:  # fmt: skip
        applied = self._containerd.apply(_target(layer), mounts)
        if applied != diff_id:
            raise BadImage(f"layer {layer.digest} unpacks to {applied}, {diff_id} by the config")
        try:
            self._containerd.commit(self._snapshotter, chain, key, labels)
        except AlreadyThere:  # somebody else pulled it meanwhile
            self._containerd.remove_snapshot(self._snapshotter, key)

    def _labels(self, manifest: str, rest: list[Descriptor], chain: str) -> dict[str, str]:
        """For the layer ``rest[0]``, which becomes ``chain``; the others are those above it."""
        own = {key: v for key, v in rest[0].annotations.items() if key.startswith(SNAPSHOT)}
        return own | {
            "containerd.io/snapshot.ref": chain,
            f"{_CRI}image-ref": str(self._origin.name),
            f"{_CRI}manifest-digest": manifest,
            f"{_CRI}layer-digest": rest[0].digest,
            f"{_CRI}image-layers": _fitting(f"{_CRI}image-layers", rest),
        }


def chain_id(parent: str, diff_id: str) -> str:
    """The name of a snapshot (OCI image-spec, ChainID)."""
    if not parent:
        return diff_id
    return f"sha256:{hashlib.sha256(f'{parent} {diff_id}'.encode()).hexdigest()}"


def _fitting(key: str, layers: list[Descriptor]) -> str:
    """As many digests, joined by commas, as a label may hold."""
    value = ""
    for layer in layers:
        longer = f"{value},{layer.digest}" if value else layer.digest
        if len(key) + len(longer) > LABEL_LIMIT:
            break
        value = longer
    return value


def _target(of: Descriptor) -> Target:
    return Target(of.media_type, of.digest, of.size)


def _document_target(of: Document) -> Target:
    return Target(of.media_type, of.digest, len(of.body))


def _diff_ids(config: bytes) -> list[str]:
    ids = _table(parse_document(config), "rootfs").get("diff_ids")
    if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
        raise BadImage("the image's configuration has no list of diff_ids", hint="push it again")
    return ids


def _table(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    if not isinstance(value, dict):
        raise BadImage(f"the image has no valid {name}", hint="is this an image?")
    return value
