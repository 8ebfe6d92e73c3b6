"""References, and credentials from where Docker keeps them.  No network."""

from __future__ import annotations

import json
import os
import stat
from base64 import b64encode
from pathlib import Path

import pytest

from nydus_fscache.errors import BackendError, UsageError
from nydus_fscache.registry.challenge import Challenge, parse_challenge
from nydus_fscache.registry.credentials import find_auth
from nydus_fscache.registry.reference import Reference

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("r.example/a", ("r.example", "a", "latest", "")),
        ("localhost/a/b:1", ("localhost", "a/b", "1", "")),
        ("h:5000/a/b-c_d.e:T.1", ("h:5000", "a/b-c_d.e", "T.1", "")),
        (f"[::1]:5000/a@{DIGEST}", ("[::1]:5000", "a", "", DIGEST)),
        (f"r.example/a:1@{DIGEST}", ("r.example", "a", "1", DIGEST)),
        ("docker.io/nginx", ("registry-1.docker.io", "library/nginx", "latest", "")),
        ("index.docker.io/a/b", ("registry-1.docker.io", "a/b", "latest", "")),
    ],
)
def test_reference(text: str, parts: tuple[str, ...]) -> None:
    ref = Reference.parse(text)
    assert (ref.host, ref.repo, ref.tag, ref.digest) == parts
    assert Reference.parse(str(ref)) == ref


@pytest.mark.parametrize(
    "text",
    [
        "", "nginx", "team/app", "r.example/", "r.example/A", "r.example/a:", "r.example/a:b:c",
        "r.example/../a", "r.example/a@sha256:00", "r.example/a@md5:00", "http://r.example/a",
        "u:p@r.example/a", "r.example/a b", "r.example/a\n", "-x.example/a",
    ],
)  # fmt: skip
def test_bad_reference(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Reference.parse(text)
    assert caught.value.hint


def encode(text: str) -> str:
    return b64encode(text.encode()).decode()


def login(directory: Path, config: object) -> dict[str, str]:
    (directory / "config.json").write_text(json.dumps(config))
    return {"DOCKER_CONFIG": str(directory)}


def test_entries_of_config_json(tmp_path: Path) -> None:
    environ = login(
        tmp_path,
        {
            "auths": {
                "r.example": {"auth": encode("u:p:q")},
                "https://old.example/v1/": {"username": "u", "password": "p"},
                "https://index.docker.io/v1/": {"auth": encode("hub:p")},
                "id.example": {"identitytoken": "tok"},
                "empty.example": {},
            }
        },
    )
    assert find_auth("r.example", environ) == encode("u:p:q")
    assert find_auth("old.example", environ) == encode("u:p")
    assert find_auth("registry-1.docker.io", environ) == encode("hub:p")
    assert find_auth("id.example", environ) == encode("<token>:tok")
    assert find_auth("empty.example", environ) == ""
    assert find_auth("example", environ) == ""
    environ["IMAGE_PULL_AUTH"] = encode("env:p")
    assert find_auth("r.example", environ) == encode("env:p")
    with pytest.raises(UsageError):
        find_auth("r.example", {"IMAGE_PULL_AUTH": "nonsense"})


def test_home_is_the_default_place(tmp_path: Path) -> None:
    (tmp_path / ".docker").mkdir()
    login(tmp_path / ".docker", {"auths": {"r.example": {"auth": encode("u:p")}}})
    assert find_auth("r.example", {"HOME": str(tmp_path)}) == encode("u:p")
    assert find_auth("r.example", {"HOME": "/nonexistent"}) == ""


def test_bad_config_json_tells_no_secret(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"auths": {"r": {"auth": "c2VjcmV0OnNlY3JldA==')
    with pytest.raises(UsageError) as caught:
        find_auth("r", {"DOCKER_CONFIG": str(tmp_path)})
    assert "c2Vjc" not in f"{caught.value!r}{caught.value.__cause__!r}"
    environ = login(tmp_path, {"auths": {"r": {"auth": "%%"}}})
    with pytest.raises(UsageError, match="auth of r is not base64"):
        find_auth("r", environ)


def helper(directory: Path, name: str, script: str) -> None:
    file = directory / f"docker-credential-{name}"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def test_credential_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    helper(tmp_path, "good", 'echo "{\\"Username\\": \\"u-$(cat)\\", \\"Secret\\": \\"s\\"}"')
    helper(tmp_path, "none", 'echo "credentials not found in native keychain"; exit 1')
    helper(tmp_path, "broken", "echo secret; exit 2")
    helper(tmp_path, "silent", "true")
    environ = login(
        tmp_path,
        {
            "credHelpers": {"h.example": "good", "b.example": "broken", "s.example": "silent"},
            "credsStore": "none",
            "auths": {"r.example": {"auth": encode("u:p")}},
        },
    )
    assert find_auth("h.example", environ) == encode("u-h.example:s")
    assert find_auth("r.example", environ) == encode("u:p")
    for host in ("b.example", "s.example"):
        with pytest.raises(BackendError) as caught:
            find_auth(host, environ)
        assert "secret" not in str(caught.value)
    for name in ("missing", "../../bin/sh"):
        with pytest.raises(UsageError):
            find_auth("x", login(tmp_path, {"credsStore": name}))


@pytest.mark.parametrize(
    ("header", "challenge"),
    [
        ("", None),
        ("Negotiate abc==", None),
        ("Basic", Challenge("basic")),
        ('basic realm="a, b"', Challenge("basic")),
        (
            'Bearer realm="https://t/x?a=b",service="s s",scope="repository:a/b:pull,push"',
            Challenge("bearer", "https://t/x?a=b", "s s", "repository:a/b:pull,push"),
        ),
        ('Basic realm="r", Bearer realm=http://t', Challenge("bearer", "http://t")),
        ('Bearer realm="a\\"b" , service=x', Challenge("bearer", 'a"b', "x")),
        ("Bearer service=x", None),
        (', , ="', None),
    ],
)
def test_challenge(header: str, challenge: Challenge | None) -> None:
    assert parse_challenge(header) == challenge
