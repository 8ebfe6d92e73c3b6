"""The options of the ``registry`` backend, as values: for reading blobs and for pulling."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from nydus_fscache.config.http_options import HttpOptions, take_http_options
from nydus_fscache.config.options import Options
from nydus_fscache.config.url import Url, parse_url
from nydus_fscache.errors import UsageError
from nydus_fscache.http.redirect import RedirectRules
from nydus_fscache.registry.auth import check_auth
from nydus_fscache.registry.reference import REPO
from rafs_v6.values import dataclass


@dataclass(frozen=True, slots=True)
class RegistryOptions:
    """``base``: the registry's root.  ``auth``: base64 of user:password."""

    base: Url
    repo: str
    http: HttpOptions
    rules: RedirectRules
    auth: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


def take_registry_options(table: Any) -> RegistryOptions:
    """``UsageError`` names the option that is wrong."""
    options = table if isinstance(table, Options) else Options("registry", table)
    host, repo = options.text("host"), options.text("repo")
    auth, token = options.text("auth", ""), options.header_text("registry_token", "")
    scheme, moved = options.text("blob_url_scheme", ""), options.text("blob_redirected_host", "")
    options.ignore("readahead", "readahead_sec")  # written by nydus-snapshotter
    if scheme not in ("", "http", "https"):
        raise UsageError(f"blob_url_scheme is {scheme!r}", hint="http or https")
    if not REPO.fullmatch(repo):
        raise UsageError(f"{repo!r} is not a repository", hint="like library/alpine, no tag")
    http = take_http_options(options)
    options.end()
    return RegistryOptions(
        base=host_url(http.scheme, host, "registry.host"),
        repo=repo,
        http=http,
        rules=RedirectRules(
            scheme,
            host_url(scheme or "https", moved, "registry.blob_redirected_host") if moved else None,
        ),
        auth=check_auth(auth),
        token=token,
    )


def host_url(scheme: str, host: str, option: str) -> Url:
    url = parse_url(f"{scheme}://{host}", option)
    if url.target != "/":
        raise UsageError(f"{option} is {host!r}", hint="a host, or host:port")
    return url
