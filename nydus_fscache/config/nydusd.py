"""nydusd's configuration documents: what of them we act on (sheet nydusd-interface 3, 5.7, 5.8).

Version 2 (JSON or TOML, marked by ``version``), version 1 (JSON, with ``device``), or a
``backend`` object of version 2 alone.  Other members are nydusd's affair and ignored, as
it ignores what it does not know.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nydus_fscache.config.tuning import Tuning, tuning_of
from nydus_fscache.errors import UsageError

MAX_DOCUMENT = 1 << 20


@dataclass(frozen=True, slots=True)
class Config:
    """``backend``: its object of version 2."""

    backend: dict[str, Any]
    tuning: Tuning


def read(path: Path) -> str:
    """The text of a document; raises ``UsageError``."""
    try:
        with path.open("rb") as f:
            text = f.read(MAX_DOCUMENT + 1).decode()
    except (OSError, ValueError) as e:
        raise UsageError(f"cannot read {path}: {e}") from e
    if len(text) > MAX_DOCUMENT:
        raise UsageError(f"{path} is larger than {MAX_DOCUMENT} bytes")
    return text


def parse(text: str, where: object) -> Config:
    """Raises ``UsageError``; ``where``: the document's name, for messages."""
    document = document_of(text, where)
    if "version" in document:
        if document["version"] != 2:
            raise UsageError(f"{where} is of version {document['version']!r}", hint="2, or 1: none")
        rafs, cache = _table(document, "rafs"), _table(document, "cache")
        backend = _table(document, "backend")
        batch, prefetch = rafs.get("batch_size"), _table(cache, "prefetch")
        if not prefetch.get("enable"):
            prefetch = _table(rafs, "prefetch") or prefetch
        names = ("threads", "batch_size", "bandwidth_limit")
    elif "device" in document:
        backend = old_backend(document)
        batch, prefetch = document.get("amplify_io"), _table(document, "fs_prefetch")
        names = ("threads_count", "merging_size", "bandwidth_rate")
    else:
        backend, batch, prefetch, names = document, None, {}, ("", "", "")
    if not backend.get("type"):
        raise UsageError(f"{where} names no backend", hint="see docs/backends.md")
    is_old = "device" in document
    return Config(backend, _tuning(batch, prefetch, names, where, all_by_default=is_old))


def old_backend(document: Mapping[str, Any]) -> dict[str, Any]:
    """That of a document of version 1, as an object of version 2."""
    old = _table(_table(document, "device"), "backend")
    return {"type": old.get("type"), str(old.get("type")): old.get("config")}


def with_registry_auth(text: str, auth: str, where: object) -> str:
    """The document with other credentials (base64 of user:password) for its registry."""
    document = document_of(text, where)
    if "version" in document:
        options = _table(_table(document, "backend"), "registry")
    else:
        options = _table(_table(_table(document, "device"), "backend"), "config")
    options["auth"] = auth
    return json.dumps(document)


def of_backend(backend: dict[str, Any]) -> Config:
    """A backend object alone: the rest is found out."""
    return Config(backend, Tuning())


def document_of(text: str, where: object) -> dict[str, Any]:
    """JSON or TOML; raises ``UsageError``."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        try:
            document = tomllib.loads(text)
        except (ValueError, RecursionError) as e:
            raise UsageError(
                f"{where} is neither JSON nor TOML: {e}", hint="a configuration of nydusd"
            ) from e
    if not isinstance(document, dict):
        raise UsageError(f"{where} holds no object", hint='{"type": "localfs", …}')
    return document


def _table(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{name} is {value!r}", hint="it must be a table")
    return value


def _tuning(
    batch: Any, prefetch: dict[str, Any], names: tuple[str, str, str], where: object,
    *, all_by_default: bool,
) -> Tuning:  # fmt: skip
    """``names``: of threads, request size and rate in ``prefetch``; absent ones are found out."""
    policy = ""
    threads, merging, rate = (None, None, None)
    if prefetch.get("enable") is False:
        policy = "none"
    elif prefetch.get("enable"):
        policy = "all" if prefetch.get("prefetch_all", all_by_default) else "table"
        threads, merging, rate = (prefetch.get(name) for name in names)
    return tuning_of(
        {
            "amplify": batch, "prefetch": policy, "threads": threads,
            "merging": merging, "bandwidth": rate,
        },
        where,
    )  # fmt: skip
