"""References, and credentials from where Docker keeps them.  No network."""

from __future__ import annotations

import json
import os
import stat
import time
from base64 import b64encode
from pathlib import Path

import pytest

from nydus_fscache.errors import BackendError, UsageError
from nydus_fscache.registry.challenge import Challenge, parse_challenge
from nydus_fscache.registry.credentials import find_auth
from nydus_fscache.registry.reference import Reference, canonical_host, is_loopback

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
        ("Negotiate, NTLM", None),
        ('Negotiate, Basic realm="a, b"', Challenge("basic")),
        ('Basic realm="r", Negotiate', Challenge("basic")),
        ('Negotiate oRQwEqADCg==, NTLM, Bearer realm="http://t"', Challenge("bearer", "http://t")),
        ("Negotiate,bearer realm = http://t , service = s", Challenge("bearer", "http://t", "s")),
        (
            'Digest realm="d", qop="auth,auth-int", nonce="ab==", Basic realm="x"',
            Challenge("basic"),
        ),
        ('Bearer realm="", Basic', Challenge("basic")),
        ('Bearer realm="http://a", Bearer realm="http://b"', Challenge("bearer", "http://a")),
        ('Basic realm="Bearer realm=http://t"', Challenge("basic")),
        ('Bearer realm="http://t', Challenge("bearer", '"http://t')),
        (', , ="', None),
    ],
)
def test_challenge(header: str, challenge: Challenge | None) -> None:
    assert parse_challenge(header) == challenge


@pytest.mark.parametrize(
    "fill", [" ", "\t", ",", " ,", '"', "\\", "=", 'a="', "a=b, ", "a ", '\\"']
)
def test_a_challenge_costs_little_whatever_it_is(fill: str) -> None:
    """The header's limit is 32 KiB; the time must not grow with the square of that."""
    for size in (10_000, 32_000):
        header = f'Bearer realm="https://t"{fill * (size // len(fill))}!'
        began = time.perf_counter()
        parse_challenge(header)
        assert time.perf_counter() - began < 0.2


@pytest.mark.parametrize(
    ("host", "same"),
    [
        ("docker.io", "registry-1.docker.io"),
        ("index.docker.io", "registry-1.docker.io"),
        ("R.Example:443", "r.example"),
        ("r.example:5000", "r.example:5000"),
    ],
)
def test_one_registry_by_several_names(host: str, same: str) -> None:
    assert canonical_host(host) == same


@pytest.mark.parametrize("host", ["docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub_by_each_of_its_names(tmp_path: Path, host: str) -> None:
    for key in ("https://index.docker.io/v1/", "docker.io", "registry-1.docker.io"):
        environ = login(tmp_path, {"auths": {key: {"auth": encode("hub:p")}}})
        assert find_auth(host, environ) == encode("hub:p")


def test_spelling_of_a_host(tmp_path: Path) -> None:
    environ = login(tmp_path, {"auths": {"R.Example": {"auth": encode("u:p")}}})
    for host in ("r.example", "R.EXAMPLE", "r.example:443"):
        assert find_auth(host, environ) == encode("u:p")
    assert find_auth("r.example:5000", environ) == ""


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True), ("localhost:5000", True), ("127.0.0.1:80", True), ("[::1]:5000", True),
        ("127.5.5.5", True), ("127.0.0.1.example", False), ("localhost.example", False),
        ("r.example", False), ("10.0.0.1", False), ("[::2]", False),
    ],
)  # fmt: skip
def test_loopback(host: str, here: bool) -> None:
    assert is_loopback(host) is here
