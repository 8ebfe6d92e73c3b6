"""Image references: ``HOST[:PORT]/REPO[:TAG][@DIGEST]``.  No I/O, no default registry."""

from __future__ import annotations

import re

from nydus_fscache.errors import UsageError
from rafs_v6.values import dataclass

REPO = re.compile(r"[a-z0-9]+(?:[._/-]+[a-z0-9]+)*")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::\d{1,5})?")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# the names under which people know Docker Hub, and the host that answers
HUB_NAMES = ("docker.io", "index.docker.io", "registry-1.docker.io")
HUB_HOST = "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class Reference:
    """``host`` is the one to ask; ``digest`` (sha256:hex) wins over ``tag``."""

    host: str
    repo: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """``UsageError`` says which part is wrong."""
        rest, at, digest = text.partition("@")
        if at and not _DIGEST.fullmatch(digest):
            raise _wrong(text, f"{digest!r} is not a digest (sha256 and 64 hex digits)")
        host, slash, path = rest.partition("/")
        if not slash or not _HOST.fullmatch(host):
            raise _wrong(text, "no registry host before the first /")
        if not ("." in host or ":" in host or host == "localhost"):
            raise _wrong(text, f"{host!r} is not a registry host")
        repo, colon, tag = path.partition(":")
        if colon and not _TAG.fullmatch(tag):
            raise _wrong(text, f"{tag!r} is not a tag")
        if not REPO.fullmatch(repo) or len(repo) > 255:
            raise _wrong(text, f"{repo!r} is not a repository (lower case)")
        host = canonical_host(host)
        if host == HUB_HOST:
            repo = repo if "/" in repo else f"library/{repo}"
        return cls(host, repo, tag or ("" if digest else "latest"), digest)

    @property
    def manifest(self) -> str:
        """The name that a registry is asked for: digest or tag."""
        return self.digest or self.tag

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.host}/{self.repo}{tag}" + (f"@{self.digest}" if self.digest else "")


def canonical_host(host: str) -> str:
    """One spelling for each registry: lower case, no https port, Docker Hub's real name."""
    host = host.lower().removesuffix(":443")
    return HUB_HOST if host in HUB_NAMES else host


def is_loopback(host: str) -> bool:
    """Is this registry on this machine?  ``host`` may have a port."""
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    return name in ("localhost", "[::1]", "::1") or bool(
        re.fullmatch(r"127\.\d{1,3}\.\d{1,3}\.\d{1,3}", name)
    )


def _wrong(text: str, why: str) -> UsageError:
    return UsageError(f"{text!r}: {why}", hint="HOST[:PORT]/REPO[:TAG][@sha256:…]")
