"""The images in memory, each once however many bindings have it, and their backends."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from nydus_fscache.backend.base import Backend
from nydus_fscache.backend.make import make_backend
from nydus_fscache.fetch.objects import Objects
from nydus_fscache.fetch.queue import Fetcher
from nydus_fscache.image.binding import Binding
from nydus_fscache.image.image import Image, auth_of, image_key, load_image


@dataclass(slots=True)
class _Loaded:
    """``uses``: bindings, those under way included."""

    image: Image
    uses: int = 0


class LoadedImages:
    """Thread-safe.  ``directory``: where bootstraps and metadata are kept."""

    def __init__(self, directory: Path, objects: Objects, fetcher: Fetcher) -> None:
        self._directory = directory
        self._objects = objects
        self._fetcher = fetcher
        self._lock = threading.Lock()
        self._by_key: dict[str, _Loaded] = {}

    def take(self, binding: Binding, *, may_ask: bool) -> Image:
        """To be given up again; without ``may_ask`` no backend is waited for.

        Raises ``FscacheError`` for an image or a backend that cannot be used.
        """
        key = image_key(binding.digest, binding.backend)
        with self._lock:
            if loaded := self._by_key.get(key):
                loaded.uses += 1
                if auth := auth_of(binding.backend):  # the newest credentials are the best
                    loaded.image.backend.reauth(auth)
                return loaded.image
        backend: Backend = make_backend(binding.backend)
        try:
            image = load_image(
                self._directory / f"{binding.digest}.boot",
                binding.digest,
                backend,
                binding.backend,
                binding.transport,
                self._directory / f"{key}.meta",
                may_ask=may_ask,
            )
        except BaseException:
            backend.close()
            raise
        with self._lock:
            loaded = self._by_key.setdefault(key, _Loaded(image))
            loaded.uses += 1
        if loaded.image is not image:  # another bind was quicker
            backend.close()
        return loaded.image

    def give_up(self, image: Image) -> None:
        with self._lock:
            loaded = self._by_key[image.key]
            loaded.uses -= 1
            if loaded.uses:
                return
            del self._by_key[image.key]
        self._objects.leave(image.backend)
        self._fetcher.forget(image.backend)
        image.backend.close()
