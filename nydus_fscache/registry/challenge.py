"""``WWW-Authenticate``: the credentials that a server asks for.  No I/O.

Servers offer several schemes (Negotiate, NTLM, Digest, … of a proxy before them), in one
header or in many; those that we do not speak are passed over, wherever they stand.
"""

from __future__ import annotations

import re

from rafs_v6.values import dataclass

_LIMIT = 16 * 1024  # characters; honest ones have some hundred
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


@dataclass(frozen=True, slots=True)
class Challenge:
    """``scheme`` is ``basic`` or ``bearer``; ``realm`` is a URL for bearer."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""


def parse_challenge(header: str) -> Challenge | None:
    """Bearer before basic when both are offered; None when neither is.

    Several headers are joined by commas (RFC 9110, 5.2).  Linear in time.
    """
    from urllib.request import parse_http_list  # noqa: PLC0415 - 2 MiB with http.client and email

    if len(header) > _LIMIT:
        return None
    offers: list[tuple[str, dict[str, str]]] = []
    for item in parse_http_list(header):
        scheme, parameter = _split(item.strip())
        if scheme:
            offers.append((scheme, {}))
        name, equals, value = parameter.partition("=")
        if offers and equals and name:
            offers[-1][1].setdefault(name.strip().lower(), _unquoted(value.strip()))
    for scheme, found in offers:
        if scheme == "bearer" and found.get("realm"):
            return Challenge(
                "bearer", found["realm"], found.get("service", ""), found.get("scope", "")
            )
    return Challenge("basic") if any(scheme == "basic" for scheme, _ in offers) else None


def _split(item: str) -> tuple[str, str]:
    """Scheme, where the item begins with one, and what follows it."""
    words = item.split(None, 1)
    if not words or not _TOKEN.fullmatch(words[0]):
        return "", item
    rest = words[1] if len(words) > 1 else ""
    if rest.startswith("="):  # blanks around the = of a parameter
        return "", item
    return words[0].lower(), rest


def _unquoted(value: str) -> str:
    """``parse_http_list`` has taken the backslashes out already."""
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
