"""A configuration as nydusd shows it: version 2, with all defaults, without secrets.

Members that are absent are null, as in nydusd's answers (docs/nydusd.md, "API").
"""

from __future__ import annotations

from typing import Any

from nydus_fscache.config.nydusd import FSCACHE, NO_CACHE, Cache, Config, Prefetch, Rafs

_MIB = 1 << 20
_THREADS = 8
_TIMEOUT_S = 5
_KINDS = ("localdisk", "localfs", "oss", "s3", "registry", "http-proxy")
_HTTP = {
    "skip_verify": False, "ca_cert_files": [], "timeout": _TIMEOUT_S,
    "connect_timeout": _TIMEOUT_S, "retry_limit": 0,
}  # fmt: skip
_PROXY = {
    "url": "", "ping_url": "", "fallback": True, "check_interval": 5, "use_http": False,
    "check_pause_elapsed": 300, "dragonfly_scheduler_endpoint": "",
}  # fmt: skip
_BUCKET = {
    "scheme": "https", "endpoint": "", "bucket_name": "", "object_prefix": "",
    "access_key_id": "", "access_key_secret": "",
}  # fmt: skip
_DEFAULTS: dict[str, dict[str, Any]] = {
    "localdisk": {"device_path": "", "disable_gpt": False},
    "localfs": {"blob_file": "", "dir": "", "alt_dirs": []},
    "oss": {**_BUCKET, **_HTTP},
    "s3": {**_BUCKET, "region": "", **_HTTP},
    "registry": {
        "scheme": "https", "host": "", "repo": "", "auth": None, "registry_token": None,
        "blob_url_scheme": "", "blob_redirected_host": "", **_HTTP,
    },
    "http-proxy": {"addr": "", "path": "", **_HTTP},
}  # fmt: skip
# shown as if they were not there; those of s3 too, which nydusd forgets
_SECRETS = ("auth", "registry_token", "access_key_id", "access_key_secret", "session_token")


def as_version_2(config: Config) -> dict[str, Any]:
    overlay = config.overlay
    return {
        "version": 2,
        "id": config.id,
        "backend": _backend(config.backend),
        "external_backends": [
            {"type": e.kind, "config": dict.fromkeys(e.config, ""), "patch": {}}
            for e in config.external_backends
        ],
        "cache": _cache(config.cache),
        "rafs": _rafs(config.rafs),
        "overlay": overlay and {"upper_dir": overlay.upper_dir, "work_dir": overlay.work_dir},
    }


def _backend(backend: dict[str, Any]) -> dict[str, Any]:
    kind = str(backend.get("type"))
    defaults = _DEFAULTS.get(kind, {})
    given = backend.get(kind)
    options = {**defaults, **(given if isinstance(given, dict) else {})}
    options["scheme"] = options.get("scheme") or defaults.get("scheme")
    if "timeout" in defaults:
        options["proxy"] = {**_PROXY, **(options.get("proxy") or {})}
        options["proxy"]["url"] = _without_login(str(options["proxy"]["url"]))
    if "scheme" not in defaults:
        options.pop("scheme")
    for name in _SECRETS:
        if name in options:
            options[name] = defaults.get(name)
    options.pop("mirrors", None)  # not nydusd's; their headers may hold anything
    return {"type": kind, **{name: options if name == kind else None for name in _KINDS}}


def _without_login(url: str) -> str:
    scheme, colon, rest = url.partition("://")
    return f"{scheme}{colon}{rest.rpartition('@')[2]}"


def _cache(cache: Cache) -> dict[str, Any]:
    own: dict[str, Any] = {"work_dir": cache.work_dir}
    if cache.kind != FSCACHE:
        own |= {
            "disable_indexed_map": cache.disable_indexed_map,
            "enable_encryption": cache.enable_encryption,
            "enable_convergent_encryption": cache.enable_convergent_encryption,
            "encryption_key": "",
        }
    return {
        "type": "" if cache.kind == NO_CACHE else cache.kind,
        "compressed": cache.compressed,
        "validate": cache.validate,
        "prefetch": _prefetch(cache.prefetch),
        "filecache": None if cache.kind in (NO_CACHE, FSCACHE) else own,
        "fscache": own if cache.kind == FSCACHE else None,
    }


def _rafs(rafs: Rafs) -> dict[str, Any]:
    return {
        "mode": rafs.mode,
        "batch_size": _MIB if rafs.batch_size is None else rafs.batch_size,
        "validate": rafs.validate,
        "enable_xattr": rafs.enable_xattr,
        "iostats_files": rafs.iostats_files,
        "access_pattern": rafs.access_pattern,
        "latest_read_files": rafs.latest_read_files,
        "prefetch": _prefetch(rafs.prefetch),
    }


def _prefetch(prefetch: Prefetch) -> dict[str, Any]:
    return {
        "enable": bool(prefetch.enable),
        "threads": _THREADS if prefetch.threads is None else prefetch.threads,
        "batch_size": _MIB if prefetch.batch_size is None else prefetch.batch_size,
        "bandwidth_limit": prefetch.bandwidth_limit,
        "prefetch_all": prefetch.prefetch_all,
        "stream_prefetch": prefetch.stream_prefetch,
    }
