"""``WWW-Authenticate``: what a server wants to see before it answers.  No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass

# scheme, or name=value with a value that may be quoted
_PART = re.compile(
    r'\s*,?\s*(?:([\w-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))|([\w-]+)(?=\s|$))'
)


@dataclass(frozen=True, slots=True)
class Challenge:
    """``scheme`` is ``basic`` or ``bearer``; ``realm`` is a URL for bearer."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""


def parse_challenge(header: str) -> Challenge | None:
    """Bearer before basic when both are offered; None when neither is."""
    offers: dict[str, dict[str, str]] = {}
    at, params = 0, dict[str, str]()
    while match := _PART.match(header, at):
        name, quoted, plain, scheme = match.groups()
        at = match.end()
        if scheme:
            params = offers.setdefault(scheme.lower(), {})
        else:
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            params[name.lower()] = value
    bearer = offers.get("bearer")
    if bearer and "realm" in bearer:
        return Challenge(
            "bearer", bearer["realm"], bearer.get("service", ""), bearer.get("scope", "")
        )
    return Challenge("basic") if "basic" in offers else None
