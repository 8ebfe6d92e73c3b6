"""Secrets do not leave the node: known ones in no notation, unknown ones by their looks."""

from __future__ import annotations

import base64
import json

import pytest

from nydus_fscache.cli.redact import GONE, Redactor, is_secret_name


def test_a_known_secret_stays_in_no_notation() -> None:
    redactor = Redactor()
    pair = base64.b64encode(b'bob:S3"cr/et pass').decode()
    redactor.learn({"backend": {"config": {"auth": pair}}})
    secret = 'S3"cr/et pass'
    for text in (
        secret, pair, json.dumps({"x": secret}), "S3%22cr%2Fet%20pass",
        base64.b64encode(secret.encode()).decode(),
    ):  # fmt: skip
        shown = redactor.text(f"before {text} behind")
        assert shown.startswith("before ")
        assert shown.endswith(" behind")
        assert GONE in shown
        for part in (secret, pair, "S3%22", json.dumps(secret)[1:-1]):
            assert part not in shown


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("at https://bob:hunter22@h/v2?sig=abc now", "at https://<removed>@h/v2?<removed> now"),
        ("Authorization: Bearer abcdefgh.ijkl", "Authorization: <removed>"),
        ("got Basic Ym9iOmh1bnRlcjI= here", "got Basic <removed> here"),
        ('{"access_key_secret": "xy", "host": 1}', '{"access_key_secret": <removed>, "host": 1}'),
        ("registry_token=abc,next", "registry_token=<removed>,next"),
        ("http://host/path", "http://host/path"),
        ("blob 12ab: units 3..4: author is bob", "blob 12ab: units 3..4: author is bob"),
    ],
)  # fmt: skip
def test_what_looks_like_one_goes(text: str, left: str) -> None:
    assert Redactor().text(text) == left


def test_documents() -> None:
    document = {
        "auths": {"registry.example": {"auth": "Ym9iOng="}},
        "list": [{"password": "p", "n": 3}], "token": "", "tokens": 7, "host": "h",
    }  # fmt: skip
    assert Redactor().document(document) == {
        "auths": {"registry.example": {"auth": GONE}},
        "list": [{"password": GONE, "n": 3}], "token": "", "tokens": 7, "host": "h",
    }  # fmt: skip
    assert not is_secret_name("mountpoint")
    assert is_secret_name("IMAGE_PULL_AUTH")
