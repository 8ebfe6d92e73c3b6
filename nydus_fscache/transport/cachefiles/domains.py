"""Images by domain, which is how the kernel knows them over cachefiles: names, and what may share.

In a domain an object has one name, whatever image it is of, and one file.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import field

from nydus_fscache.errors import KernelRefused
from nydus_fscache.fetch.cache_object import CacheObject
from nydus_fscache.image.binding import Address
from nydus_fscache.image.image import Image
from nydus_fscache.transport.cachefiles.kernel_cache import checked_name
from rafs_v6.values import dataclass

DEFAULT_DOMAIN = "nydus-fscache"


def names_of(address: Address) -> tuple[str, str]:
    """(fsid, domain), as mount(2) takes them; the domain may be empty.  Raises ``UsageError``."""
    fsid, domain = address.get("fsid", ""), address.get("domain", "")
    return checked_name(fsid, "fsid"), checked_name(domain, "domain") if domain else ""


def domain_key(address: Address) -> str:
    """The domain that the kernel puts an image in."""
    fsid, domain = names_of(address)
    return domain or fsid


def free_address(digest: str, taken: Collection[Address]) -> Address:
    """Named after the image, so that its cached bootstrap serves the next mount too."""
    names, base = {names_of(address)[0] for address in taken}, digest[:32]
    fsid = next(f for n in range(1 << 20) if (f := f"{base}-{n}" if n else base) not in names)
    return {"fsid": fsid, "domain": DEFAULT_DOMAIN}


@dataclass(frozen=True, slots=True)
class BoundNames:
    """Nothing is open until the kernel asks; ``objects`` are those that it has opened."""

    image: Image
    address: Address
    objects: list[CacheObject]


@dataclass(slots=True)
class Domain:
    """The images of a domain and their cookies."""

    images: dict[str, Image] = field(default_factory=dict)  # by fsid
    bound: dict[str, BoundNames] = field(default_factory=dict)

    def check(self, image: Image, fsid: str, name: str) -> None:
        """Raises ``KernelRefused`` when the image cannot be in this domain, called ``name``."""
        known = {b.info.blob_id: b.identity for i in self.images.values() for b in i.blobs}
        if fsid in self.images:
            raise KernelRefused(f"{fsid} is bound already", hint="unbind it, or take another fsid")
        if fsid in known or {fsid, *self.images} & {b.info.blob_id for b in image.blobs}:
            raise KernelRefused(
                f"in domain {name} a blob would have the name of a bootstrap",
                hint="bind it in a domain of its own",
            )
        for blob in image.blobs:
            if known.get(blob.info.blob_id, blob.identity) != blob.identity:
                raise KernelRefused(
                    f"another image of domain {name} describes blob {blob.info.blob_id} "
                    "differently",
                    hint="bind it in a domain of its own",
                )

    def size_of(self, cookie: str) -> int:
        """Bytes of the bootstrap or blob of this name; 0: it is of no image."""
        if image := self.images.get(cookie):
            return image.size
        blobs = (blob for image in self.images.values() for blob in image.blobs)
        return next((b.chunks.flat_size for b in blobs if b.info.blob_id == cookie), 0)

    def blobs_of_others(self, fsid: str) -> set[str]:
        images = [image for other, image in self.images.items() if other != fsid]
        return {blob.info.blob_id for image in images for blob in image.blobs}

    def objects(self) -> list[CacheObject]:
        return [obj for bound in self.bound.values() for obj in bound.objects]

    def forget(self, obj: CacheObject) -> None:
        for bound in self.bound.values():
            if obj in bound.objects:
                bound.objects.remove(obj)
