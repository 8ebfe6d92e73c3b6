"""An image that is bound, as the service and what it consists of see it."""

from __future__ import annotations

from dataclasses import dataclass

from nydus_fscache.image.binding import Binding
from nydus_fscache.image.image import Image
from nydus_fscache.transport.base import Bound


@dataclass(slots=True)
class Served:
    """An entry of ``state.json`` with what lives in this process."""

    binding: Binding
    image: Image
    bound: Bound
    mounted: bool = False
    mounting: bool = False  # not mounted yet, and not to be released either

    @property
    def is_open(self) -> bool:
        """Are all its objects there?  Over cachefiles the kernel opens them one by one, and
        what it has of each is found out after that."""
        objects = self.bound.objects
        return len(objects) >= len(self.image.blobs) and all(o.presence_known for o in objects)
