"""The tables of backends in nydusd's documents: types of the members, and which are needed.

The backends check their options again, and more closely (``config.options``).  Here a wrong
one is told with its path in a whole document, and members that no backend knows are left out.
"""

from __future__ import annotations

from typing import Any

from nydus_fscache.config.fields import Fields

_MAX_NUMBER = 10**9

_TEXT, _FLAG, _NUMBER, _TEXTS, _HEADERS = "text", "flag", "number", "texts", "headers"
_HTTP = {
    "scheme": _TEXT,
    "skip_verify": _FLAG,
    "ca_cert_files": _TEXTS,
    "client_cert_file": _TEXT,
    "client_key_file": _TEXT,
    "timeout": _NUMBER,
    "connect_timeout": _NUMBER,
    "retry_limit": _NUMBER,
}
_PROXY = {
    "url": _TEXT,
    "ping_url": _TEXT,
    "fallback": _FLAG,
    "check_interval": _NUMBER,
    "check_pause_elapsed": _NUMBER,
    "use_http": _FLAG,
    "dragonfly_scheduler_endpoint": _TEXT,
}
_MIRROR = {
    "host": _TEXT,
    "headers": _HEADERS,
    "ping_url": _TEXT,
    "failure_limit": _NUMBER,
    "health_check_interval": _NUMBER,
    "auth_through": _FLAG,
}
_BUCKET = dict.fromkeys(
    ("endpoint", "bucket_name", "object_prefix", "access_key_id", "access_key_secret"), _TEXT
)
_KINDS: dict[str, dict[str, str]] = {
    "localdisk": {"device_path": _TEXT, "disable_gpt": _FLAG},
    "localfs": {"blob_file": _TEXT, "dir": _TEXT, "alt_dirs": _TEXTS},
    "oss": {**_HTTP, **_BUCKET},
    "s3": {**_HTTP, **_BUCKET, "region": _TEXT, "session_token": _TEXT, "addressing": _TEXT},
    "registry": {
        **_HTTP,
        **dict.fromkeys(
            ("host", "repo", "auth", "registry_token", "blob_url_scheme", "blob_redirected_host"),
            _TEXT,
        ),
    },
    "http-proxy": {
        **{k: v for k, v in _HTTP.items() if k != "scheme"},
        "addr": _TEXT,
        "path": _TEXT,
    },
}
# at least one name of each line must be there, and not be empty
_NEEDED = {
    "localdisk": (("device_path",),),
    "localfs": (("blob_file", "dir"),),
    "oss": (("endpoint",), ("bucket_name",)),
    "s3": (("region",), ("bucket_name",)),
    "registry": (("host",), ("repo",)),
    "http-proxy": (("addr",),),
}
# written by other tools, without a meaning here: not worth a line in a log
_IDLE = ("readahead", "readahead_sec")


def take_backend(
    fields: Fields, options: str, ignored: list[str], *, kind: str = "type"
) -> dict[str, Any]:
    """The backend as an object of version 2: ``{"type": T, T: {…}}``.

    ``kind``, ``options``: the members with the type and the options; the latter is empty in
    version 2, where it is named as the type.  Paths of unknown members go to ``ignored``.
    """
    name = fields.choice(kind, None, *_KINDS)
    table = fields.needed_table(options or name)
    found = _members(table, _KINDS[name])
    if "timeout" in _KINDS[name]:
        proxy = table.table("proxy")
        if proxy is not None:
            found["proxy"] = _members(proxy, _PROXY)
            ignored += proxy.rest()
        mirrors = table.tables("mirrors")
        if mirrors:
            found["mirrors"] = [_members(mirror, _MIRROR) for mirror in mirrors]
            ignored += [path for mirror in mirrors for path in mirror.rest()]
    for names in _NEEDED[name]:
        if not any(found.get(one) for one in names):
            raise table.missing(" or ".join(names))
    for idle in _IDLE:
        table.drop(idle)
    ignored += table.rest()
    return {"type": name, name: found}


def _members(fields: Fields, kinds: dict[str, str]) -> dict[str, Any]:
    """Those that are there."""
    found: dict[str, Any] = {}
    for name, kind in kinds.items():
        if name not in fields:
            fields.drop(name)
            continue
        if kind == _TEXT:
            found[name] = fields.text(name)
        elif kind == _FLAG:
            found[name] = fields.flag(name)
        elif kind == _NUMBER:
            found[name] = fields.plain_number(name, _MAX_NUMBER)
        elif kind == _TEXTS:
            found[name] = fields.texts(name)
        else:
            found[name] = fields.text_table(name)
    return found
