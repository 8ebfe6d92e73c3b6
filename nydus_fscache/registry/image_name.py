"""Image names as people type them for Docker: short names, Docker Hub, ``:latest``.  No I/O.

``Reference`` demands a host, as a daemon must not guess one; the converter's users
say ``alpine`` and mean ``docker.io/library/alpine:latest``.
"""

from __future__ import annotations

from nydus_fscache.errors import UsageError
from nydus_fscache.registry.reference import Reference
from rafs_v6.values import dataclass

HUB_DOMAIN = "docker.io"


@dataclass(frozen=True, slots=True)
class ImageName:
    """``domain``: as it is written down (docker.io); ``reference.host`` is the one to ask."""

    domain: str
    reference: Reference

    @classmethod
    def parse(cls, text: str) -> ImageName:
        """``UsageError`` for what is not a name, ``:latest`` where neither tag nor digest is."""
        first, slash, rest = text.partition("/")
        named = slash and (
            "." in first or ":" in first or first == "localhost" or first != first.lower()
        )
        domain, path = (first, rest) if named else (HUB_DOMAIN, text)
        if domain == "index.docker.io":
            domain = HUB_DOMAIN
        return cls(domain, Reference.parse(f"{domain}/{path}"))

    def with_tag(self, tag: str) -> ImageName:
        """Another tag of the same repository."""
        return ImageName.parse(f"{self.domain}/{self.reference.repo}:{tag}")

    def with_suffix(self, suffix: str) -> ImageName:
        """``UsageError`` for a name by digest, which has no tag to append to."""
        if self.reference.digest:
            raise UsageError(
                f"unsupported digested image reference: {self}", hint="use --target instead"
            )
        return self.with_tag(f"{self.reference.tag}{suffix}")

    @property
    def repository(self) -> str:
        """Domain and path: the same string is the same repository."""
        return f"{self.domain}/{self.reference.repo}"

    def __str__(self) -> str:
        tag = f":{self.reference.tag}" if self.reference.tag else ""
        digest = f"@{self.reference.digest}" if self.reference.digest else ""
        return f"{self.repository}{tag}{digest}"


