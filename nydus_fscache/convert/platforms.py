"""Platforms of an index: which of its images are meant, and what is no image at all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nydus_fscache.errors import BadImage, UsageError
from nydus_fscache.registry import media
from nydus_fscache.registry.manifest import own_architecture
from rafs_v6.values import dataclass

_ALIASES = {
    "x86_64": ("amd64", ""), "x86-64": ("amd64", ""), "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"), "armel": ("arm", "v6"), "i386": ("386", ""),
}  # fmt: skip
_WORD = re.compile(r"[A-Za-z0-9_.-]+")
_OSES = ("linux", "windows", "darwin", "freebsd")


@dataclass(frozen=True, slots=True)
class Platform:
    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        words = text.strip().split("/")
        if not 1 <= len(words) <= 3 or not all(_WORD.fullmatch(w) for w in words):
            raise UsageError(f'invalid platform: "{text}"', hint="like linux/amd64")
        if len(words) == 1:
            words = [words[0], host().architecture] if words[0] in _OSES else ["linux", words[0]]
        arch, variant = _ALIASES.get(words[1].lower(), (words[1].lower(), ""))
        variant = words[2] if len(words) == 3 else variant
        return cls(words[0].lower(), arch, "" if (arch, variant) == ("arm64", "v8") else variant)

    def fits(self, entry: Mapping[str, Any]) -> bool:
        """An entry that names no platform fits all."""
        found = entry.get("platform")
        if not isinstance(found, dict) or not found:
            return True
        variant = str(found.get("variant") or "")
        variant = "" if (found.get("architecture"), variant) == ("arm64", "v8") else variant
        return (
            found.get("os") == self.os
            and found.get("architecture") == self.architecture
            and (not self.variant or self.variant == variant)
        )

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


def host() -> Platform:
    return Platform("linux", own_architecture())


def parse_all(text: str) -> tuple[Platform, ...]:
    """A comma list."""
    return tuple(Platform.parse(word) for word in text.split(",")) if text else ()


def is_attestation(entry: Mapping[str, Any]) -> bool:
    notes = entry.get("annotations")
    found = entry.get("platform")
    unknown = isinstance(found, dict) and found.get("os") == "unknown"
    return unknown or (isinstance(notes, dict) and media.ATTESTED in notes)


def choose(
    index: Mapping[str, Any], wanted: Sequence[Platform], *, every: bool, name: str
) -> list[dict[str, Any]]:
    """The entries for ``wanted`` in their order; ``BadImage`` names a platform that is absent.

    Attestations are left out: they are about manifests that the result does not hold.
    """
    entries = index.get("manifests")
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise BadImage(f"{name} is an index without a valid list", hint="is this an image?")
    images = [entry for entry in entries if not is_attestation(entry)]
    if every:
        if not images:
            raise BadImage(f"{name} is an index of no images")
        return images
    wanted = wanted or (host(),)
    for one in wanted:
        if not any(one.fits(entry) for entry in images):
            there = sorted({_said(entry) for entry in images})
            raise BadImage(f"{name} has no image for {one}", hint=f"there are {', '.join(there)}")
    return [entry for entry in images if any(one.fits(entry) for one in wanted)]


def _said(entry: Mapping[str, Any]) -> str:
    found = entry.get("platform")
    found = found if isinstance(found, dict) else {}
    words = (found.get("os"), found.get("architecture"), found.get("variant"))
    return "/".join(str(w) for w in words if w)
