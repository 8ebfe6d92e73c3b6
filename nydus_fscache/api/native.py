"""The routes of our own API, of the calls that the daemon hands in.

    GET    /v1/status
    GET    /v1/transport              that of "auto", or the error that no mount escapes
    POST   /v1/mounts                 {"bootstrap", "backend", "mountpoint", "transport", "source",
                                       "prefetch", "cache_limit", "tuning"}
    DELETE /v1/mounts?mountpoint=M
    POST   /v1/bindings               {"bootstrap", "backend", "transport", "fsid", "domain",
                                       "tuning"}
    DELETE /v1/bindings?fsid=F&domain=D[&lazy=true]
    POST   /v1/prefetches             {"mountpoint", "paths" or "prefetch"}
    GET    /v1/prefetches
    POST   /v1/credentials            {"host", "auth"}
    POST   /v1/gc                     {"to": bytes, "dry_run"}
    DELETE /v1/cached?name=BLOB_OR_FSID
    GET    /v1/traces?digest=sha256:D
    POST   /v1/upgrade                {"python", "dry_run"}
    POST   /v1/stop
    GET    /metrics                   Prometheus' text, not JSON
"""

from __future__ import annotations

from typing import Any, Protocol

from nydus_fscache.api.server import Body, Query, Routes, Text

Document = dict[str, Any]


class Calls(Protocol):
    """Each returns the document of its answer, or raises ``FscacheError``."""

    def status(self) -> Document: ...
    def transport(self) -> Document: ...
    def mount(self, request: Body) -> Document: ...
    def umount(self, mountpoint: str) -> Document: ...
    def bind(self, request: Body) -> Document: ...
    def unbind(self, fsid: str, domain: str, *, lazy: bool = False) -> Document: ...
    def prefetch(self, request: Body) -> Document: ...
    def prefetches(self) -> Document: ...
    def login(self, request: Body) -> Document: ...
    def gc(self, request: Body) -> Document: ...
    def drop(self, name: str) -> Document: ...
    def trace(self, digest: str) -> Document: ...
    def upgrade(self, request: Body) -> Document: ...
    def stop(self, request: Body) -> Document: ...
    def metrics(self) -> Text: ...


def routes(calls: Calls) -> Routes:
    def umount(query: Query, _: Body) -> Document:
        return calls.umount(query.get("mountpoint", ""))

    def unbind(query: Query, _: Body) -> Document:
        lazy = query.get("lazy") == "true"
        return calls.unbind(query.get("fsid", ""), query.get("domain", ""), lazy=lazy)

    return {
        ("GET", "/v1/status"): lambda _, __: calls.status(),
        ("GET", "/v1/transport"): lambda _, __: calls.transport(),
        ("POST", "/v1/mounts"): lambda _, body: calls.mount(body),
        ("DELETE", "/v1/mounts"): umount,
        ("POST", "/v1/bindings"): lambda _, body: calls.bind(body),
        ("DELETE", "/v1/bindings"): unbind,
        ("POST", "/v1/prefetches"): lambda _, body: calls.prefetch(body),
        ("GET", "/v1/prefetches"): lambda _, __: calls.prefetches(),
        ("POST", "/v1/credentials"): lambda _, body: calls.login(body),
        ("POST", "/v1/gc"): lambda _, body: calls.gc(body),
        ("DELETE", "/v1/cached"): lambda query, _: calls.drop(query.get("name", "")),
        ("GET", "/v1/traces"): lambda query, _: calls.trace(query.get("digest", "")),
        ("POST", "/v1/upgrade"): lambda _, body: calls.upgrade(body),
        ("POST", "/v1/stop"): lambda _, body: calls.stop(body),
        **metrics_routes(calls),
    }


def metrics_routes(calls: Calls) -> Routes:
    """All that is served where anybody may ask."""
    return {("GET", "/metrics"): lambda _, __: calls.metrics()}
