"""nydusd's configuration documents, whole: versions 1 and 2, JSON and TOML, and blob entries.

Version 2 (JSON or TOML) is marked by ``version``, version 1 (JSON) has ``device``; a
``backend`` object of version 2 may also stand alone, and is then read as strictly as the
command line.  All members of nydusd 2.4 are known and their types are checked; a wrong one is
told with its path.  Unknown ones are ignored, as nydusd does, and listed.  Defaults are
nydusd's (docs/nydusd.md, "Configuration").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

from nydus_fscache.config.backend_table import take_backend
from nydus_fscache.config.fields import Fields
from nydus_fscache.config.tuning import MAX_SIZE, Tuning
from nydus_fscache.errors import UsageError
from rafs_v6.values import dataclass

MAX_DOCUMENT = 1 << 20
_MAX_THREADS = 1024
_THREADS = 8
_MIB = 1 << 20
FILECACHE, FSCACHE, NO_CACHE = "filecache", "fscache", "dummycache"
_CACHE_KINDS = {"blobcache": FILECACHE, FILECACHE: FILECACHE, FSCACHE: FSCACHE,
                NO_CACHE: NO_CACHE, "": NO_CACHE}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prefetch:
    """``enable`` None: not said.  Sizes in bytes, ``bandwidth_limit`` in bytes/s (0: none)."""

    enable: bool | None = None
    threads: int | None = None
    batch_size: int | None = None
    bandwidth_limit: int = 0
    prefetch_all: bool = False
    stream_prefetch: bool = False


@dataclass(frozen=True, slots=True)
class ExternalBackend:
    """For blobs outside of the image's own backend; ``patch`` replaces options of it."""

    kind: str
    config: dict[str, str]
    patch: dict[str, str]


@dataclass(frozen=True, slots=True)
class Cache:
    """``kind``: filecache, fscache or dummycache.  ``work_dir``: of metadata, for fscache."""

    kind: str = NO_CACHE
    work_dir: str = "."
    compressed: bool = False
    validate: bool = False
    prefetch: Prefetch = Prefetch()
    disable_indexed_map: bool = False
    enable_encryption: bool = False
    enable_convergent_encryption: bool = False
    encryption_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Rafs:
    """``batch_size`` in bytes; None: not said."""

    mode: str = "direct"
    batch_size: int | None = None
    validate: bool = False
    enable_xattr: bool = False
    iostats_files: bool = False
    access_pattern: bool = False
    latest_read_files: bool = False
    prefetch: Prefetch = Prefetch()


@dataclass(frozen=True, slots=True)
class Overlay:
    """Read and shown; nothing here is written to."""

    upper_dir: str
    work_dir: str


@dataclass(frozen=True, slots=True)
class Config:
    """``backend``: its object of version 2.  ``id_mapping``: nydus-snapshotter's, for pods with a
    user namespace: first owner in the image, who that is outside, how many.  ``ignored``: paths of
    members not known here."""

    backend: dict[str, Any] = field(repr=False)
    tuning: Tuning
    id: str = ""
    cache: Cache = Cache()
    rafs: Rafs = Rafs()
    overlay: Overlay | None = None
    external_backends: tuple[ExternalBackend, ...] = ()
    metadata_path: str = ""
    id_mapping: tuple[int, int, int] | None = None
    ignored: tuple[str, ...] = ()

    def request(self) -> dict[str, Any]:
        """The members of a request to mount or bind that come from a configuration."""
        return {"backend": self.backend, "tuning": asdict(self.tuning)}


@dataclass(frozen=True, slots=True)
class BlobEntry:
    """A bootstrap that is bound over cachefiles: ``id`` is its fsid."""

    id: str
    domain_id: str
    config: Config


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


def document_of(text: str, where: object) -> dict[str, Any]:
    """JSON or TOML; raises ``UsageError``."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        import tomllib  # noqa: PLC0415 - a MiB, for the rarer kind

        try:
            document = tomllib.loads(text)
        except (ValueError, RecursionError) as e:
            raise UsageError(
                f"{where} is neither JSON nor TOML: {e}", hint="a configuration of nydusd"
            ) from e
    if not isinstance(document, dict):
        raise UsageError(f"{where} holds no object", hint='{"type": "localfs", …}')
    return document


def parse(text: str, where: object) -> Config:
    """Raises ``UsageError``; ``where``: the document's name, for messages."""
    document = document_of(text, where)
    if "version" in document:
        return _version_2(Fields(document, where))
    if "device" in document:
        return _version_1(Fields(document, where))
    if not document.get("type"):
        raise UsageError(f"{where} names no backend", hint="see docs/backends.md")
    return of_backend(document)


def of_backend(backend: dict[str, Any]) -> Config:
    """A backend object alone: the rest is found out."""
    return Config(backend, Tuning())


def backend_of(document: Mapping[str, Any], where: object) -> dict[str, Any]:
    """The backend alone, of a document of any version; raises ``UsageError``."""
    if "version" not in document and "device" not in document:
        found = document.get("backend", document)
        if not isinstance(found, dict):
            raise Fields(document, where).wrong("backend", found, "a table")
        return found
    fields = Fields(document, where)
    if "version" in document:
        return take_backend(fields.needed_table("backend"), "", [])
    return take_backend(fields.needed_table("device").needed_table("backend"), "config", [])


def with_registry_auth(text: str, auth: str, where: object) -> str:
    """The document with other credentials (base64 of user:password) for its registry."""
    document = document_of(text, where)
    path: tuple[str, ...] = ("registry",)
    if "version" in document:
        path = ("backend", "registry")
    elif "device" in document:
        path = ("device", "backend", "config")
    options = document
    for name in path:
        options = options.setdefault(name, {})
        if not isinstance(options, dict):
            raise Fields(document, where).wrong(".".join(path), options, "a table")
    options["auth"] = auth
    return json.dumps(document)


def blob_entries(text: str, where: object) -> list[BlobEntry]:
    """Of the document that ``nydusd singleton --config`` takes: ``{"blobs": [entry, …]}``.

    As with nydusd, a document without that list says nothing.
    """
    fields = Fields(document_of(text, where), where)
    return [_blob_entry(entry) for entry in fields.tables("blobs")]


def blob_entry(document: object, where: object) -> BlobEntry:
    """One entry, as ``PUT /api/v2/blobs`` takes it; raises ``UsageError``."""
    return _blob_entry(Fields(document, where))


def _blob_entry(fields: Fields) -> BlobEntry:
    kind = fields.choice("type", None, "bootstrap", "datablob")
    if kind == "datablob":
        raise fields.wrong("type", kind, "bootstrap: data blobs are bound by their bootstrap")
    names = fields.text("id", None), fields.text("domain_id")
    for name, value in zip(("id", "domain_id"), names, strict=True):
        if "/" in value or "\0" in value:
            raise fields.wrong(name, value, "a name without /")
    new, old = fields.table("config_v2"), fields.table("config")
    if new is not None:
        config = _version_2(new)
    elif old is not None:
        config = _legacy_entry(old)
    else:
        raise fields.missing("config or config_v2")
    return BlobEntry(*names, config)


def _version_2(fields: Fields) -> Config:
    version = fields.whole("version", 0)
    if version != 2:
        raise fields.wrong("version", version, "2 (a document of version 1 has no version)")
    ignored: list[str] = []
    backend = take_backend(fields.needed_table("backend"), "", ignored)
    table = fields.table("rafs")
    rafs = Rafs() if table is None else _rafs(table, ignored)
    table = fields.table("cache")
    cache = Cache() if table is None else _cache(table, ignored)
    overlay = fields.table("overlay")
    prefetch = cache.prefetch if cache.prefetch.enable else rafs.prefetch
    if prefetch.enable is None:
        prefetch = cache.prefetch
    return Config(
        backend=backend,
        tuning=_tuning(rafs.batch_size, prefetch),
        id=fields.text("id"),
        cache=cache,
        rafs=rafs,
        overlay=None if overlay is None else _overlay(overlay),
        external_backends=_external(fields, ignored),
        metadata_path=fields.text("metadata_path"),
        id_mapping=fields.id_mapping("id_mapping"),
        ignored=(*ignored, *fields.rest()),
    )


def _rafs_of(fields: Fields, batch: str, validate: str, prefetch: Prefetch) -> Rafs:
    """``batch``, ``validate``: the names that a version has for these."""
    return Rafs(
        mode=fields.choice("mode", "direct", "direct", "cached"),
        batch_size=_size(fields, batch),
        validate=fields.flag(validate),
        enable_xattr=fields.flag("enable_xattr"),
        iostats_files=fields.flag("iostats_files"),
        access_pattern=fields.flag("access_pattern"),
        latest_read_files=fields.flag("latest_read_files"),
        prefetch=prefetch,
    )


def _rafs(fields: Fields, ignored: list[str]) -> Rafs:
    table = fields.table("prefetch")
    prefetch = Prefetch() if table is None else _prefetch(table, ignored)
    rafs = _rafs_of(fields, "batch_size", "validate", prefetch)
    ignored += fields.rest()
    return rafs


def _prefetch(fields: Fields, ignored: list[str]) -> Prefetch:
    prefetch = _prefetch_by_names(
        fields, ("threads", "batch_size", "bandwidth_limit"), all_by_default=False
    )
    ignored += fields.rest()
    return prefetch


def _prefetch_by_names(
    fields: Fields, names: tuple[str, str, str], *, all_by_default: bool
) -> Prefetch:
    """``names``: of threads, request size and rate."""
    enable = fields.flag("enable") if "enable" in fields else None
    threads, size, rate = names
    return Prefetch(
        enable=enable,
        threads=_optional(fields, threads, int(bool(enable)), _MAX_THREADS),
        batch_size=_optional(fields, size, 0, MAX_SIZE),
        bandwidth_limit=fields.whole(rate, 0),
        prefetch_all=fields.flag("prefetch_all", all_by_default),
        stream_prefetch=fields.flag("stream_prefetch"),
    )


def _optional(fields: Fields, name: str, least: int, most: int) -> int | None:
    return fields.whole(name, 0, least, most) if name in fields else None


def _size(fields: Fields, name: str) -> int | None:
    return _optional(fields, name, 0, MAX_SIZE)


def _cache(fields: Fields, ignored: list[str]) -> Cache:
    kind = _CACHE_KINDS[fields.choice("type", "", *_CACHE_KINDS)]
    table = fields.table("prefetch")
    prefetch = Prefetch() if table is None else _prefetch(table, ignored)
    tables = {name: fields.table(name) for name in (FILECACHE, FSCACHE)}
    own = tables.get(kind)
    if kind != NO_CACHE and own is None:
        raise fields.missing(kind)
    cache = _cache_of(kind, fields, own, prefetch)
    ignored += [path for table in tables.values() if table is not None for path in table.rest()]
    ignored += fields.rest()
    return cache


def _cache_of(kind: str, fields: Fields, own: Fields | None, prefetch: Prefetch) -> Cache:
    """``fields``: what all kinds have; ``own``: options of this kind."""
    compressed = fields.flag("compressed")
    if compressed and kind == FSCACHE:
        raise fields.wrong("compressed", compressed, "false: the kernel reads this cache")
    own = own or Fields({}, fields.where, fields.at("config"))
    return Cache(
        kind=kind,
        work_dir=own.text("work_dir", "."),
        compressed=compressed,
        validate=fields.flag("validate"),
        prefetch=prefetch,
        disable_indexed_map=own.flag("disable_indexed_map"),
        enable_encryption=own.flag("enable_encryption"),
        enable_convergent_encryption=own.flag("enable_convergent_encryption"),
        encryption_key=own.text("encryption_key"),
    )


def _overlay(fields: Fields) -> Overlay:
    overlay = Overlay(fields.text("upper_dir"), fields.text("work_dir"))
    for name in ("upper_dir", "work_dir"):
        if not getattr(overlay, name):
            raise fields.missing(name)
    return overlay


def _external(fields: Fields, ignored: list[str]) -> tuple[ExternalBackend, ...]:
    found = []
    for table in fields.tables("external_backends"):
        found.append(
            ExternalBackend(
                table.text("type", None), table.text_table("config"), table.text_table("patch")
            )
        )
        ignored += table.rest()
    return tuple(found)


def _version_1(fields: Fields) -> Config:
    ignored: list[str] = []
    device = fields.needed_table("device")
    backend = take_backend(device.needed_table("backend"), "config", ignored)
    table = fields.table("fs_prefetch")
    prefetch = Prefetch() if table is None else _old_prefetch(table, ignored)
    cache_table = device.table("cache")
    cache = Cache(prefetch=prefetch)
    if cache_table is not None:
        kind = _CACHE_KINDS[cache_table.choice("type", "", *_CACHE_KINDS)]
        own = cache_table.table("config")
        cache = _cache_of(kind, cache_table, own, prefetch)
        ignored += [*(own.rest() if own else ()), *cache_table.rest()]
    rafs = _rafs_of(fields, "amplify_io", "digest_validate", prefetch)
    return Config(
        backend=backend,
        tuning=_tuning(rafs.batch_size, prefetch),
        id=device.text("id"),
        cache=cache,
        rafs=rafs,
        external_backends=_external(device, ignored),
        id_mapping=fields.id_mapping("id_mapping"),
        ignored=(*ignored, *device.rest(), *fields.rest()),
    )


def _old_prefetch(fields: Fields, ignored: list[str], *, always_all: bool = False) -> Prefetch:
    names = ("threads_count", "merging_size", "bandwidth_rate")
    if always_all:
        fields.drop("prefetch_all")
    prefetch = _prefetch_by_names(fields, names, all_by_default=True)
    ignored += fields.rest()
    return prefetch


def _legacy_entry(fields: Fields) -> Config:
    """The form that nydus-snapshotter sends.  As in nydusd, prefetch is of whole blobs there."""
    ignored: list[str] = []
    prefetch = fields.table("prefetch_config")
    found = Prefetch() if prefetch is None else _old_prefetch(prefetch, ignored, always_all=True)
    backend = take_backend(fields, "backend_config", ignored, kind="backend_type")
    kind = _CACHE_KINDS[fields.choice("cache_type", None, *_CACHE_KINDS)]
    own = fields.needed_table("cache_config")
    return Config(
        backend=backend,
        tuning=_tuning(None, found),
        id=fields.text("id"),
        cache=_cache_of(kind, fields, own, found),
        external_backends=_external(fields, ignored),
        metadata_path=fields.text("metadata_path"),
        ignored=(*ignored, *own.rest(), *fields.rest()),
    )


def _tuning(batch: int | None, prefetch: Prefetch) -> Tuning:
    """What is not said is found out."""
    if prefetch.enable is None:
        return Tuning(amplify=batch)
    if not prefetch.enable:
        return Tuning(amplify=batch, prefetch="none")
    return Tuning(
        amplify=batch,
        prefetch="all" if prefetch.prefetch_all else "table",
        threads=prefetch.threads,
        merging=prefetch.batch_size,
        bandwidth=prefetch.bandwidth_limit,
    )
