"""Which layers engines use: counted by them, on disk before the answer, once for each request.

An engine makes ``use`` in a layer's directory to say that it uses it, and removes the directory
to say that it does not any more.  Counts are kept for each viewer (``views.py``).
"""

from __future__ import annotations

import json
import threading
from collections import Counter, deque
from dataclasses import asdict
from pathlib import Path

from nydus_fscache.errors import CacheDirError
from nydus_fscache.files import replace_file
from nydus_fscache.runtimes.store.catalogue import Image
from rafs_v6.values import dataclass

VERSION = 1
_REMEMBERED = 64  # requests that a successor may be asked again; there are no more at once


@dataclass(frozen=True, slots=True)
class Use:
    """``digest``: by which the layer was asked for.  ``anonymous``: as of the image."""

    viewer: str
    name: str
    digest: str
    anonymous: bool


class Uses:
    """Thread-safe.  ``new_connection``: numbers of requests begin anew."""

    def __init__(self, file: Path, *, new_connection: bool) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._counts: Counter[Use] = Counter()
        self._images: dict[tuple[str, str, bool], Image] = {}  # name, manifest, anonymous
        self._seen: deque[int] = deque(maxlen=_REMEMBERED)
        try:
            self._load(new_connection)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise CacheDirError(
                f"{file} is not a state of this version: {e}",
                hint="stop the engines, remove their Nydus images, delete the file",
            ) from e

    def _load(self, new_connection: bool) -> None:
        document = json.loads(self._file.read_bytes())
        if document["version"] != VERSION:
            raise ValueError(f"version {document['version']}")
        for one in document["uses"]:
            count = one.pop("count")
            self._counts[Use(**one)] = int(count)
        for one in document["images"]:
            image = Image.of(one)
            self._images[image.name, image.manifest, image.anonymous] = image
        if not new_connection:
            self._seen.extend(document["seen"])

    def find(self, name: str, digest: str, *, anonymous: bool) -> Image | None:
        """An image that somebody uses."""
        with self._lock:
            for image in self._images.values():
                if (image.name, image.anonymous) == (name, anonymous) and image.layer(digest):
                    return image
        return None

    def add(self, use: Use, image: Image, request: int) -> None:
        self._count(use, image, request, 1)

    def release(self, use: Use, image: Image, request: int) -> bool:
        """Is the image now unused by this viewer?"""
        self._count(use, image, request, -1)
        return not self.in_use(image, use.viewer)

    def in_use(self, image: Image, viewer: str = "") -> bool:
        """By this viewer, or by anyone."""
        with self._lock:
            return self._in_use(image, viewer)

    def _in_use(self, image: Image, viewer: str) -> bool:
        return any(
            count > 0 and (use.name, use.anonymous) == (image.name, image.anonymous)
            and image.layer(use.digest)
            for use, count in self._counts.items() if viewer in ("", use.viewer)
        )  # fmt: skip

    def count(self) -> int:
        with self._lock:
            return self._counts.total()

    def _count(self, use: Use, image: Image, request: int, step: int) -> None:
        with self._lock:
            if request in self._seen:  # a predecessor had written this, and died before it answered
                return
            self._counts[use] += step
            if self._counts[use] <= 0:
                del self._counts[use]
            key = image.name, image.manifest, image.anonymous
            self._images[key] = image
            if not self._in_use(image, ""):
                del self._images[key]
            self._seen.append(request)
            self._save()

    def _save(self) -> None:
        document = {
            "version": VERSION,
            "uses": [
                {**asdict(use), "count": count} for use, count in self._counts.items()
            ],
            "images": [image.document() for image in self._images.values()],
            "seen": list(self._seen),
        }
        replace_file(self._file, json.dumps(document).encode())
