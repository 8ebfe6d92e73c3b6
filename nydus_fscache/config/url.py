"""URLs of configurations and of requests: parsed once, safe to send, safe to print.

``str(url)`` never shows the query: the query of a redirected URL is a signature.
Anything that could split a request (spaces, control characters) is refused.
"""

from __future__ import annotations

import re
from urllib.parse import urljoin, urlsplit

from nydus_fscache.errors import UsageError
from rafs_v6.values import dataclass

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
_UNSAFE = re.compile(r"[^\x21-\x7e]")


@dataclass(frozen=True, slots=True)
class Url:
    """``target``: path and query as they are sent.  Scheme ``unix``: ``host`` is a socket path."""

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def parse(cls, text: str) -> Url:
        """Absolute http or https URL; ``ValueError`` says what is wrong, without the URL."""
        if _UNSAFE.search(text):
            raise ValueError("characters that no URL may have")
        parts = urlsplit(text)
        scheme = parts.scheme.lower()
        if scheme not in _PORTS:
            raise ValueError("neither http nor https")
        if parts.username is not None or parts.password is not None:
            raise ValueError("credentials in the URL")
        host = parts.hostname or ""
        if not _HOST.fullmatch(host):
            raise ValueError("no valid host")
        port = parts.port if parts.port is not None else _PORTS[scheme]
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(scheme, host, port, target)

    def join(self, location: str) -> Url:
        """The target of a ``Location`` header, which may be relative."""
        return Url.parse(urljoin(f"{self.base}{self.target}", location))

    def with_target(self, target: str) -> Url:
        """The same place, another path and query."""
        return Url(self.scheme, self.host, self.port, target)

    def as_http(self) -> Url:
        """The same without TLS, as a caching proxy wants to see it."""
        if self.scheme != "https":
            return self
        return Url("http", self.host, 80 if self.port == 443 else self.port, self.target)

    @property
    def origin(self) -> tuple[str, str, int]:
        """What credentials belong to."""
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """The ``Host`` header."""
        if self.scheme == "unix":
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def base(self) -> str:
        return self.host if self.scheme == "unix" else f"{self.scheme}://{self.authority}"

    def __str__(self) -> str:
        return self.base + self.target.partition("?")[0]

    def __repr__(self) -> str:  # a dataclass would print the query
        return f"Url({str(self)!r})"


def parse_url(text: str, option: str) -> Url:
    """``UsageError`` names the option."""
    try:
        return Url.parse(text)
    except ValueError as e:
        raise UsageError(f"{option} is not a URL: {e}", hint="http://host[:port]/…") from e
