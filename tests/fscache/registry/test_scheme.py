"""Whether a registry is spoken to by TLS: plain http is the loopback's alone."""

from __future__ import annotations

import time

import pytest

from nydus_fscache.config.http_options import HttpOptions
from nydus_fscache.config.url import Url
from nydus_fscache.errors import BackendError
from nydus_fscache.http.dial import Dialer
from nydus_fscache.registry.scheme import find_scheme


def test_other_hosts_never_fall_back_to_http(monkeypatch: pytest.MonkeyPatch) -> None:
    dialled: list[str] = []

    def connect(self: Dialer, url: Url, *_: object) -> object:
        dialled.append(url.scheme)
        raise BackendError("TLS handshake failed")

    monkeypatch.setattr(Dialer, "connect", connect)
    deadline = time.monotonic() + 5
    assert find_scheme("r.example:5000", HttpOptions(), deadline=deadline) == "https"
    assert dialled == []
    assert find_scheme("localhost:5000", HttpOptions(), deadline=deadline) == "http"
    assert dialled == ["https"]
