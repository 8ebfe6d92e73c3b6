"""Where a registry is asked: ``hosts.toml`` as containerd reads it (docs/hosts.md), or itself.

Understood: ``server``, ``[host."URL"]`` in their order with ``capabilities``, ``skip_verify``,
``ca`` and ``client``; other keys, which change requests in ways of which we know nothing, are
refused rather than left out.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nydus_fscache.config.http_options import Tls
from nydus_fscache.config.url import parse_url
from nydus_fscache.errors import UsageError
from rafs_v6.values import dataclass

_KNOWN = {"capabilities", "skip_verify", "ca", "client"}
_HUB_FOLDER = "docker.io"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``scheme``: empty when it is to be found out."""

    host: str
    scheme: str
    tls: Tls
    resolves: bool = True  # may say what a tag means


def endpoints(directory: Path | None, domain: str, host: str, tls: Tls) -> list[Endpoint]:
    """To be asked in this order.  ``domain``: as in the image's name; ``host``: its registry.

    Raises ``UsageError`` for a file that is wrong.
    """
    own = Endpoint(host, "", tls)
    file = _file(directory, domain) if directory else None
    if file is None:
        return [own]
    try:
        document = tomllib.loads(file.read_text())
    except (OSError, ValueError) as e:
        raise UsageError(f"{file}: {e}", hint="see containerd's docs/hosts.md") from e
    tables = document.get("host", {})
    if not isinstance(tables, Mapping):
        raise UsageError(f"{file}: host is not a table", hint="see containerd's docs/hosts.md")
    found = [_endpoint(file, url, table, tls) for url, table in tables.items()]
    server = document.get("server")
    if server is not None:
        rest = {key: value for key, value in document.items() if key not in ("server", "host")}
        found.append(_endpoint(file, server, rest, tls))
    else:
        found.append(own)
    return found


def _file(directory: Path, domain: str) -> Path | None:
    """``HOST_PORT_`` is an old spelling of ``HOST:PORT``."""
    name, colon, port = domain.partition(":")
    names = [domain, f"{name}_{port}_"] if colon else [domain]
    if domain == _HUB_FOLDER:
        names.append("registry-1.docker.io")
    for candidate in (*names, "_default"):
        file = directory / candidate / "hosts.toml"
        if file.is_file():
            return file
    return None


def _endpoint(file: Path, text: object, table: Any, tls: Tls) -> Endpoint:
    if not isinstance(text, str) or not isinstance(table, Mapping):
        raise UsageError(f"{file}: {text!r} is not a host", hint='[host."https://HOST:PORT"]')
    unknown = sorted(set(table) - _KNOWN)
    if unknown:
        raise UsageError(f"{file}: {unknown[0]} of {text} is not supported", hint="take it out")
    url = parse_url(text if "://" in text else f"https://{text}", f"{file}: host")
    if url.target not in ("/", "/v2", "/v2/"):
        raise UsageError(f"{file}: {text} has a path, which is not supported", hint="a host alone")
    allowed = table.get("capabilities", ["pull", "resolve"])
    return Endpoint(url.authority, url.scheme, _tls(file, table, tls), "resolve" in allowed)


def _tls(file: Path, table: Mapping[str, Any], tls: Tls) -> Tls:
    """``client``: a file of certificate and key, or ``[[certificate, key]]``."""
    found = replace(
        tls,
        skip_verify=bool(table.get("skip_verify", tls.skip_verify)),
        ca_cert_files=_files(file, table.get("ca"), tls.ca_cert_files),
    )
    if "client" not in table:
        return found
    given = table["client"]
    pair = given[0] if isinstance(given, list) and given else given
    words = [pair, pair] if isinstance(pair, str) else pair
    if not (isinstance(words, list) and len(words) == 2 and all(isinstance(w, str) for w in words)):
        raise UsageError(f"{file}: client is not a pair of files", hint='[["cert", "key"]]')
    certificate, key = (str(file.parent / word) for word in words)
    return replace(found, client_cert_file=certificate, client_key_file=key)


def _files(file: Path, given: object, default: tuple[str, ...]) -> tuple[str, ...]:
    """Relative to the file that names them."""
    if given is None:
        return default
    names = [given] if isinstance(given, str) else given
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UsageError(f"{file}: ca is not a list of files", hint='ca = "/path/ca.pem"')
    return tuple(str(file.parent / name) for name in names)
