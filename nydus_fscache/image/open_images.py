"""The images in memory, each once however many bindings have it, and their backends."""

from __future__ import annotations

import threading
from collections.abc import Callable

from nydus_fscache.backend.base import Backend
from nydus_fscache.backend.make import make_backend
from nydus_fscache.image.binding import Binding
from nydus_fscache.image.bootstraps import Bootstraps
from nydus_fscache.image.image import Image, auth_of, image_key, load_image
from rafs_v6.values import dataclass


@dataclass(slots=True)
class _Open:
    """``uses``: bindings, those under way included."""

    image: Image
    uses: int = 0


class OpenImages:
    """Thread-safe.  ``bootstraps``: the copies, beside which metadata are kept.  ``leave``: called
    before a backend that no image has any more is closed."""

    def __init__(self, bootstraps: Bootstraps, leave: Callable[[Backend], None]) -> None:
        self._bootstraps = bootstraps
        self._leave = leave
        self._lock = threading.Lock()
        self._by_key: dict[str, _Open] = {}

    def take(self, binding: Binding, *, may_ask: bool) -> Image:
        """To be given up again; without ``may_ask`` no backend is waited for.

        Raises ``FscacheError`` for an image or a backend that cannot be used.
        """
        key = image_key(binding.digest, binding.backend)
        with self._lock:
            if opened := self._by_key.get(key):
                opened.uses += 1
                if auth := auth_of(binding.backend):  # the newest credentials are the best
                    opened.image.backend.reauth(auth)
                return opened.image
        backend: Backend = make_backend(binding.backend)
        try:
            image = load_image(
                self._bootstraps.path(binding.digest),
                binding.digest,
                backend,
                binding.backend,
                binding.transport,
                self._bootstraps.directory / f"{key}.meta",
                may_ask=may_ask,
                verified=self._bootstraps.is_verified(binding.digest),
            )
            self._bootstraps.wait_until_durable(binding.digest)
        except BaseException:
            backend.close()
            raise
        with self._lock:
            opened = self._by_key.setdefault(key, _Open(image))
            opened.uses += 1
        if opened.image is not image:  # another bind was quicker
            backend.close()
        return opened.image

    def give_up(self, image: Image) -> None:
        with self._lock:
            opened = self._by_key[image.key]
            opened.uses -= 1
            if opened.uses:
                return
            del self._by_key[image.key]
        self._leave(image.backend)
        image.backend.close()
