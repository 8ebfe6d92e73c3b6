"""The options that all backends over HTTP take, as values: checked once, used by any HTTP layer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import field
from urllib.parse import unquote

from nydus_fscache.config.options import Options, is_header
from nydus_fscache.config.url import Url, parse_url
from nydus_fscache.errors import UsageError
from rafs_v6.values import dataclass

RETRIES = 5
_NO_TIMEOUT_S = 24 * 3600.0  # 0 means none; the deadline of the request still ends it
_ENV_PREFIX = "NYDUS_HEADER_"
_FAILURES = 3  # in a row, before a mirror rests


@dataclass(frozen=True, slots=True)
class Tls:
    """Whom to trust, and our own certificate; paths of PEM files."""

    skip_verify: bool = False
    ca_cert_files: tuple[str, ...] = ()
    client_cert_file: str = ""
    client_key_file: str = ""


@dataclass(frozen=True, slots=True)
class ProxyOptions:
    """``credentials`` is user:password; ``fallback``: without the proxy when it fails."""

    url: Url
    credentials: str = field(default="", repr=False)
    ping: Url | None = None
    fallback: bool = True
    use_http: bool = False


@dataclass(frozen=True, slots=True)
class MirrorOptions:
    """Another place to ask first; ``failure_limit``: in a row, before it is left out."""

    host: Url
    ping: Url | None = None
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    failure_limit: int = _FAILURES


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """``stall_s``: silence that ends a request.  ``retries``: attempts after the first."""

    scheme: str = "https"
    stall_s: float = 5.0
    connect_s: float = 5.0
    retries: int = RETRIES
    tls: Tls = Tls()
    proxy: ProxyOptions | None = None
    check_interval_s: float = 5.0
    check_pause_s: float = 300.0  # nobody read for so long: no health checks; 0: never pause
    mirrors: tuple[MirrorOptions, ...] = ()


def take_http_options(options: Options, *, scheme: bool = True) -> HttpOptions:
    """Take them out of a backend's table; ``scheme``: whether it has that one."""
    name = (options.text("scheme", "") if scheme else "") or "https"
    if name not in ("http", "https"):
        raise UsageError(f"{options.kind}.scheme is {name!r}", hint="http or https")
    proxy = options.table("proxy")
    taken = HttpOptions(
        scheme=name,
        stall_s=options.number("timeout", 5) or _NO_TIMEOUT_S,
        connect_s=options.number("connect_timeout", 5) or _NO_TIMEOUT_S,
        retries=int(options.number("retry_limit", 0)) or RETRIES,
        tls=Tls(
            skip_verify=options.flag("skip_verify"),
            ca_cert_files=tuple(options.texts("ca_cert_files")),
            client_cert_file=options.text("client_cert_file", ""),
            client_key_file=options.text("client_key_file", ""),
        ),
        check_interval_s=proxy.number("check_interval", 5) or 5.0,
        check_pause_s=proxy.number("check_pause_elapsed", 300),
        proxy=_proxy(proxy),
        mirrors=tuple(_mirror(table) for table in options.tables("mirrors")),
    )
    proxy.end()
    return taken


def environment_headers(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """``NYDUS_HEADER_<Name>=<value>``: headers for every request to the configured host."""
    headers = {}
    for key, value in environ.items():
        name = key.removeprefix(_ENV_PREFIX)
        if name == key:
            continue
        if not is_header(name, value):
            raise UsageError(f"{key} is not a valid header", hint="printable ASCII only")
        headers[name] = value
    return headers


def _proxy(options: Options) -> ProxyOptions | None:
    text, ping = options.text("url", ""), options.url("ping_url")
    fallback, use_http = options.flag("fallback", True), options.flag("use_http")
    options.ignore("dragonfly_scheduler_endpoint")  # needs Dragonfly's own client library
    if not text:
        return None
    scheme, _, rest = text.partition("://")
    credentials, _, host = rest.rpartition("@")
    url = parse_url(f"{scheme}://{host}", f"{options.kind}.url")
    return ProxyOptions(url, unquote(credentials), ping, fallback, use_http)


def _mirror(options: Options) -> MirrorOptions:
    host = options.url("host")
    if host is None:
        raise UsageError(f"{options.kind} needs host", hint="http://host:port")
    mirror = MirrorOptions(
        host,
        options.url("ping_url"),
        options.headers("headers"),
        int(options.number("failure_limit", _FAILURES)),
    )
    options.ignore("auth_through", "health_check_interval")
    options.end()
    return mirror
