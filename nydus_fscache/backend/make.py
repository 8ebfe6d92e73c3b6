"""The one place that knows which backends there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from nydus_fscache.backend.base import Backend
from nydus_fscache.config.options import Options
from nydus_fscache.errors import UsageError

# type -> module and class; imported when used, since most daemons use one
_BACKENDS = {
    "http-proxy": ("http_proxy", "HttpProxy"),
    "localdisk": ("localdisk", "LocalDisk"),
    "localfs": ("localfs", "LocalFs"),
    "oss": ("oss", "Oss"),
    "registry": ("registry", "Registry"),
    "s3": ("s3", "S3"),
}


def make_backend(config: Mapping[str, Any]) -> Backend:
    """From the ``backend`` object of nydusd's configuration v2: ``{"type": T, T: {…}}``."""
    kind = config.get("type")
    if not isinstance(kind, str) or kind not in _BACKENDS:
        raise UsageError(f"no backend of type {kind!r}", hint=f"one of {', '.join(_BACKENDS)}")
    module, name = _BACKENDS[kind]
    make: Callable[[Options], Backend] = getattr(
        import_module(f"nydus_fscache.backend.{module}"), name
    )
    return make(Options(kind, config.get(kind)))
