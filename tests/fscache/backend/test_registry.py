"""The registry backend against Debian's docker-registry, and against redirects and tokens."""

from __future__ import annotations

import base64
import json
import logging
import socket
import threading
import time
from pathlib import Path

import pytest
from backend_kit import Make, soon
from rangeserver import Fault, RangeServer
from servers import AUTH, Pusher, TokenServer, docker_registry, htpasswd_auth

from nydus_fscache.config.url import Url
from nydus_fscache.errors import BackendError
from nydus_fscache.http.redirect import RedirectRules
from nydus_fscache.registry.auth import basic

REPO = "team/app"


def registry(make: Make, host: str, **more: object):
    return make("registry", scheme="http", host=host, repo=REPO, **more)


def test_anonymous(tmp_path: Path, make: Make, data: bytes) -> None:
    with docker_registry(tmp_path) as host, Pusher(host, REPO) as push:
        blob_id = push.blob(data)
        backend = registry(make, host)
        assert backend.size(blob_id, deadline=soon()) == len(data)
        assert backend.read(blob_id, 777, 99_999, deadline=soon()) == data[777 : 777 + 99_999]
        with pytest.raises(BackendError, match="answers 404") as caught:
            backend.size("0" * 64, deadline=soon())
        assert caught.value.status == 404


def test_basic(tmp_path: Path, make: Make, data: bytes) -> None:
    with docker_registry(tmp_path, htpasswd_auth(tmp_path)) as host:
        with Pusher(host, REPO, {"Authorization": f"Basic {AUTH}"}) as push:
            blob_id = push.blob(data)
        assert registry(make, host, auth=AUTH).read(blob_id, 5, 50, deadline=soon()) == data[5:55]
        for wrong in ("", basic("alice", "guess")):
            with pytest.raises(BackendError, match="answers 401") as caught:
                registry(make, host, auth=wrong).size(blob_id, deadline=soon())
            assert caught.value.status == 401
            assert "docker login" in (caught.value.hint or "")


@pytest.mark.parametrize("post", [True, False])
def test_bearer(tmp_path: Path, make: Make, data: bytes, post: bool) -> None:
    tokens = TokenServer(tmp_path, allow_post=post)
    with tokens.run() as realm, docker_registry(tmp_path, tokens.config(realm)) as host:
        bearer = {"Authorization": f"Bearer {tokens.jwt(REPO, ['pull', 'push'])}"}
        with Pusher(host, REPO, bearer) as push:
            blob_id = push.blob(data)
        backend = registry(make, host, auth=AUTH)
        start = threading.Barrier(8)
        wrong = []

        def read() -> None:
            start.wait()
            if backend.read(blob_id, 9, 900, deadline=soon()) != data[9:909]:
                wrong.append(1)

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert tokens.asked == (["POST"] if post else ["POST", "GET"])

        backend = registry(make, host, registry_token=tokens.jwt(REPO, ["pull"]))
        assert backend.size(blob_id, deadline=soon()) == len(data)
        assert len(tokens.asked) == (1 if post else 2)  # the configured token did


def test_token_that_expires_is_renewed(tmp_path: Path, make: Make, data: bytes) -> None:
    tokens = TokenServer(tmp_path)
    with tokens.run() as realm, docker_registry(tmp_path, tokens.config(realm)) as host:
        bearer = {"Authorization": f"Bearer {tokens.jwt(REPO, ['pull', 'push'])}"}
        with Pusher(host, REPO, bearer) as push:
            blob_id = push.blob(data)
        # expired for longer than the registry's leeway of a minute: 401 in flight
        stale = tokens.jwt(REPO, ["pull"], ttl_s=-120)
        backend = registry(make, host, auth=AUTH, registry_token=stale)
        assert backend.read(blob_id, 0, 10, deadline=soon()) == data[:10]
        assert tokens.asked == ["POST"]

        tokens.ttl_s = 1  # renewed at half of its life, beside the readers
        backend = registry(make, host, auth=AUTH)
        until = time.monotonic() + 1.6
        while time.monotonic() < until:
            assert backend.read(blob_id, 0, 10, deadline=soon()) == data[:10]
            time.sleep(0.05)
        assert 3 <= len(tokens.asked) <= 6


def test_new_credentials_without_restart(tmp_path: Path, make: Make, data: bytes) -> None:
    tokens = TokenServer(tmp_path)
    with tokens.run() as realm, docker_registry(tmp_path, tokens.config(realm)) as host:
        bearer = {"Authorization": f"Bearer {tokens.jwt(REPO, ['pull', 'push'])}"}
        with Pusher(host, REPO, bearer) as push:
            blob_id = push.blob(data)
        backend = registry(make, host, auth=basic("alice", "old"))
        with pytest.raises(BackendError, match=r"token server .* answers 401"):
            backend.size(blob_id, deadline=soon())
        assert backend.reauth(AUTH)
        assert backend.size(blob_id, deadline=soon()) == len(data)


class RangeServer6(RangeServer):
    address_family = socket.AF_INET6

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, host="::1")


class Redirecting:
    """A registry that sends clients of /v2/ to a storage server by signed URLs."""

    def __init__(self, target: str, auth: str = AUTH) -> None:
        self.target = target
        self.auth = auth
        self.signature = "sig-1"

    def __call__(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if headers.get("Authorization") != f"Basic {self.auth}":
            return 401, {"WWW-Authenticate": 'Basic realm="x"'}, b""
        name = path.rpartition(":")[2]
        location = f"{self.target}/store/{name}?Signature={self.signature}"
        return 307, {"Location": location}, b""


def test_redirects_carry_no_credentials_and_are_remembered(
    blobs: Path, make: Make, data: bytes, blob_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NYDUS_HEADER_X-Tenant", "secret-tenant")
    with RangeServer(blobs) as store:
        front = Redirecting(store.url)
        with RangeServer(blobs, route=front) as server:
            backend = registry(make, server.host, auth=AUTH)
            for off in range(5):
                got = backend.read(blob_id, off, 5000, deadline=soon())
                assert got == data[off : off + 5000]
            assert len(server.seen) == 2  # the challenge, and the redirect
            assert {seen.headers.get("X-Tenant") for seen in server.seen} == {"secret-tenant"}
            assert len(store.seen) == 5
            for seen in store.seen:
                assert not {"Authorization", "X-Tenant"} & seen.headers.keys()
                assert seen.headers["User-Agent"].startswith("nydus-fscache/")

            for status in (401, 403, 404, 400, 500):  # any surprise: ask the registry again
                store.faults.append(Fault(status=status))
                assert backend.read(blob_id, 1, 10, deadline=soon()) == data[1:11]
            assert len(server.seen) == 7


def test_no_secret_in_messages(
    blobs: Path, make: Make, blob_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with RangeServer(blobs) as store, RangeServer(blobs, route=Redirecting(store.url)) as server:
        backend = registry(make, server.host, auth=AUTH, retry_limit=1)
        for fault in (Fault(status=403), Fault(status=500), Fault(close=True), Fault(shift=1)):
            store.always = fault
            with pytest.raises(BackendError) as caught:
                backend.read(blob_id, 0, 10, deadline=soon())
            told = f"{caught.value} {caught.value!r} {caught.value.hint} {caught.value.__cause__}"
            assert not [s for s in ("sig-1", "Signature", AUTH, "sesame") if s in told]
    assert "sig-1" not in caplog.text
    assert AUTH not in caplog.text


def test_redirect_to_another_port_of_the_same_host_is_another_host(
    blobs: Path, make: Make, blob_id: str
) -> None:
    with RangeServer(blobs) as metadata:  # what an attacker wants credentials sent to
        front = Redirecting(metadata.url.replace("127.0.0.1", "localhost"))
        with RangeServer(blobs, route=front) as server:
            backend = registry(make, server.host, auth=AUTH)
            backend.read(blob_id, 0, 10, deadline=soon())
        assert all("Authorization" not in seen.headers for seen in metadata.seen)


def test_blob_redirected_host(blobs: Path, make: Make, data: bytes, blob_id: str) -> None:
    with RangeServer(blobs) as store:
        front = Redirecting("https://storage.invalid")
        with RangeServer(blobs, route=front) as server:
            options = {"blob_url_scheme": "http", "blob_redirected_host": store.host}
            backend = registry(make, server.host, auth=AUTH, **options)
            assert backend.read(blob_id, 3, 10, deadline=soon()) == data[3:13]


@pytest.mark.parametrize("location", ["", "gopher://x/", "http://u:p@h/", "http://h/ x", "/v2/"])
def test_bad_redirects(blobs: Path, make: Make, blob_id: str, location: str) -> None:
    def route(*_: object) -> tuple[int, dict[str, str], bytes]:
        return 302, {"Location": location}, b""

    with RangeServer(blobs, route=route) as server:
        with pytest.raises(BackendError, match="redirect"):
            registry(make, server.host).read(blob_id, 0, 1, deadline=soon())
        assert len(server.seen) == (6 if location == "/v2/" else 1)


def test_redirect_without_location(blobs: Path, make: Make, blob_id: str) -> None:
    with RangeServer(blobs, route=lambda *_: (307, {}, b"")) as server:
        with pytest.raises(BackendError, match="redirects without saying where"):
            registry(make, server.host).read(blob_id, 0, 1, deadline=soon())
        assert len(server.seen) == 1


@pytest.mark.parametrize("by", ["location", "option"])
def test_redirect_to_an_ipv6_address(
    blobs: Path, make: Make, data: bytes, blob_id: str, by: str
) -> None:
    with RangeServer6(blobs) as store:
        place = f"[::1]:{store.port}"
        target = f"https://{place}" if by == "location" else "https://storage.invalid"
        with RangeServer(blobs, route=Redirecting(target)) as server:
            options = {"blob_redirected_host": place} if by == "option" else {}
            backend = registry(make, server.host, auth=AUTH, blob_url_scheme="http", **options)
            assert backend.read(blob_id, 3, 10, deadline=soon()) == data[3:13]
        assert store.seen[0].headers["Host"] == place


@pytest.mark.parametrize(
    ("rules", "location", "there"),
    [
        (RedirectRules(), "/x?s=1", "http://r.example/x"),
        (RedirectRules(), "//s.example/x", "http://s.example/x"),
        (RedirectRules(), "https://s.example/x", "https://s.example/x"),
        (RedirectRules("http"), "https://s.example/x", "http://s.example/x"),
        (RedirectRules("http"), "https://s.example:8443/x", "http://s.example:8443/x"),
        (RedirectRules("https"), "http://[::1]/x", "https://[::1]/x"),
        (RedirectRules("", Url.parse("http://h:80/")), "https://s.example/x", "https://h/x"),
        (RedirectRules("http", Url.parse("http://h:8080/")), "https://s/x", "http://h:8080/x"),
    ],
)
def test_where_redirects_lead(rules: RedirectRules, location: str, there: str) -> None:
    home = Url.parse("http://r.example/v2/")
    assert str(rules.target(home, home, location)) == there


def test_unknown_schemes_beside_basic(blobs: Path, make: Make, data: bytes, blob_id: str) -> None:
    for offer in ("Negotiate, Basic", 'NTLM, Negotiate abc==, Basic realm="x, y"', "Basic,NTLM"):

        def route(
            method: str, path: str, headers: dict[str, str], body: bytes, offer: str = offer
        ) -> tuple[int, dict[str, str], bytes] | None:
            if headers.get("Authorization") == f"Basic {AUTH}":
                return None
            return 401, {"WWW-Authenticate": offer}, b""

        with RangeServer(blobs, route=route) as server:
            backend = registry(make, server.host, auth=AUTH)
            assert backend.read(blob_id, 3, 10, deadline=soon()) == data[3:13]


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b'{"token": 5}',
        b'{"token": "a\\r\\nX: y"}',
        b"x" * (2 << 20),
        b"[" * 60_000,
        b'{"token": "a", "expires_in": 1' + b"0" * 400 + b"}",
        b'{"token": "a", "expires_in": 1' + b"0" * 5000 + b"}",
    ],
    ids=["empty", "list", "number", "line break", "huge", "deep", "long time", "digits"],
)
def test_hostile_token_server(blobs: Path, make: Make, blob_id: str, answer: bytes) -> None:
    def route(
        method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if path.startswith("/token"):
            return 200, {}, answer
        realm = f'Bearer realm="http://{headers["Host"]}/token",service="x"'
        return 401, {"WWW-Authenticate": realm}, b""

    with RangeServer(blobs, route=route) as server, pytest.raises(BackendError):
        registry(make, server.host).read(blob_id, 0, 1, deadline=soon())


def test_identity_token(blobs: Path, make: Make, data: bytes, blob_id: str) -> None:
    asked = []

    def route(
        method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes] | None:
        if path.startswith("/token"):
            asked.append(body.decode())
            return 200, {}, json.dumps({"access_token": "good"}).encode()
        if headers.get("Authorization") == "Bearer good":
            return None
        realm = f'Bearer realm="http://{headers["Host"]}/token",service="x"'
        return 401, {"WWW-Authenticate": realm}, b""

    with RangeServer(blobs, route=route) as server:
        auth = base64.b64encode(b"<token>:refresh-me").decode()
        assert (
            registry(make, server.host, auth=auth).read(blob_id, 0, 9, deadline=soon()) == data[:9]
        )
    assert len(asked) == 1
    assert "grant_type=refresh_token" in asked[0]
    assert "refresh_token=refresh-me" in asked[0]
