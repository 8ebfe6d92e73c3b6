"""The layers of Nydus images by reference, as the store shows them.

A registry is asked once for a reference; a digest that is not among the layers is asked for
again, as a tag may have moved, though not more often than every few seconds.  What is in use is
remembered by the state, and needs no registry.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from nydus_fscache.errors import FscacheError
from nydus_fscache.registry.access import Registries, Trust
from nydus_fscache.registry.image_name import ImageName
from nydus_fscache.registry.manifest import (
    choose_manifest,
    descriptor,
    is_index,
    nydus_image,
    own_architecture,
)
from nydus_fscache.registry.media import GZIPPED, TOC_DIGEST
from nydus_fscache.registry.repository import Repository
from nydus_fscache.registry.store import read_blob
from rafs_v6.values import dataclass

log = logging.getLogger("store")

_ASK_AGAIN_S = 5.0
_RETRIES = 1  # the caller waits

NOBODY = {"DOCKER_CONFIG": "/nonexistent"}  # an environment without credentials
GZIP = 2  # containers/storage, archive.Compression


@dataclass(frozen=True, slots=True)
class Layer:
    """``digest``, ``diff_id``, ``toc``: sha256:hex; ``toc`` may be empty.  ``size``: bytes.

    ``is_tree``: its ``diff`` is the whole image; those of the others are empty.
    """

    digest: str
    size: int
    diff_id: str
    toc: str
    gzipped: bool
    is_tree: bool

    def info(self, asked: str) -> dict[str, Any]:
        """A layer of containers/storage; it fills in id, parent and times itself."""
        document: dict[str, Any] = {
            "compressed-diff-digest": self.digest,
            "compressed-size": self.size,
            "diff-digest": self.diff_id,
            "diff-size": self.size,
            "compression": GZIP if self.gzipped else 0,
        }
        if self.toc and asked == self.toc:
            document["toc-digest"] = self.toc
        return document


@dataclass(frozen=True, slots=True)
class Image:
    """``name``: as it was asked for.  ``anonymous``: was had, and is used, without credentials."""

    name: str
    anonymous: bool
    manifest: str
    layers: tuple[Layer, ...]

    def layer(self, asked: str) -> Layer | None:
        """By digest, or by the digest of its table of contents."""
        found = (one for one in self.layers if asked in (one.digest, one.toc))
        return next(found, None)

    def document(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Image:
        layers = tuple(Layer(**one) for one in document["layers"])
        return cls(**{**document, "layers": layers})


@dataclass(slots=True)
class _Asked:
    """One name.  ``lock``: held while its registry is asked; ``at``: when it was, last."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    image: Image | None = None
    at: float = -math.inf


class Catalogue:
    """Thread-safe.  ``plain_http``: hosts that are asked over http."""

    def __init__(self, environ: Mapping[str, str], plain_http: frozenset[str]) -> None:
        self._plain_http = plain_http
        self._registries = {
            False: Registries(environ, _RETRIES),
            True: Registries(NOBODY, _RETRIES),
        }
        self._lock = threading.Lock()
        self._names: dict[tuple[str, bool], _Asked] = {}

    def find(self, name: str, digest: str, *, anonymous: bool) -> Image | None:
        """The image of that name which has the layer; None: no such image, or not of Nydus."""
        with self._lock:
            asked = self._names.setdefault((name, anonymous), _Asked())
        with asked.lock:
            if asked.image is not None and asked.image.layer(digest):
                return asked.image
            if time.monotonic() - asked.at < _ASK_AGAIN_S:
                return None
            found = self._ask(name, anonymous)
            asked.at = time.monotonic()
            if found is None:
                return None
            asked.image = found
            return found if found.layer(digest) else None

    def blob(self, image: Image, layer: Layer, off: int, length: int) -> bytes:
        """Bytes of a layer as the registry has it.  Raises ``FscacheError``."""
        length = min(length, max(0, layer.size - off))
        if not length:
            return b""
        place = self._open(ImageName.parse(image.name), image.anonymous)
        return place.read_at(layer.digest, off, length)

    def _open(self, name: ImageName, anonymous: bool) -> Repository:
        trust = Trust(plain_http=name.reference.host in self._plain_http)
        return self._registries[anonymous].open(name, trust)

    def _ask(self, text: str, anonymous: bool) -> Image | None:
        try:
            name = ImageName.parse(text)
            place = self._open(name, anonymous)
            found = place.manifest(name.reference.manifest)
            if is_index(found.json, found.media_type):
                chosen = choose_manifest(found.json, own_architecture())
                found = place.manifest(chosen.digest)
            tree = nydus_image(found.json, text).bootstrap
            config = read_blob(place, descriptor(found.json["config"]))
        except (FscacheError, KeyError, AttributeError) as e:
            log.info("%s: %s", text, e)
            return None
        layers = [descriptor(one) for one in found.json["layers"]]
        return Image(
            text, anonymous, found.digest,
            tuple(
                Layer(
                    one.digest, one.size, diff_id, one.annotations.get(TOC_DIGEST, ""),
                    one.media_type in GZIPPED, one == tree,
                )
                for one, diff_id in zip(layers, _diff_ids(config, len(layers)), strict=True)
            ),
        )  # fmt: skip


def _diff_ids(config: bytes, count: int) -> list[str]:
    """Empty where the configuration does not say."""
    try:
        ids = json.loads(config)["rootfs"]["diff_ids"]
    except (ValueError, KeyError, TypeError, RecursionError):
        ids = []
    if not (isinstance(ids, list) and len(ids) == count and all(isinstance(i, str) for i in ids)):
        return [""] * count
    return ids


def auth_environment(authfile: Path | None, environ: Mapping[str, str]) -> dict[str, str]:
    """``authfile``: as of ``podman login --authfile``."""
    chosen = dict(environ)
    if authfile is not None:
        chosen["REGISTRY_AUTH_FILE"] = str(authfile)
    return chosen
