"""Registries as people have them: with an authority of their own, with logins, and mixed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from faulty import Answer, Proxy
from oci_kit import Nydusify, peer, push_image, two_layers
from rangeserver import RangeServer
from servers import AUTH, PASSWORD, USER, Pusher, TokenServer, docker_registry, htpasswd_auth

from nydus_fscache.errors import UsageError
from nydus_fscache.registry.certificates import find_tls


@dataclass(frozen=True)
class Authority:
    """Certificates of a company, and where its machines keep them."""

    directory: Path
    authority: trustme.CA

    @property
    def pem(self) -> Path:
        return self.directory / "ca.pem"

    def pair(self) -> tuple[Path, Path]:
        """Certificate and key of a server on this machine."""
        made = self.authority.issue_cert("127.0.0.1", "localhost")
        certificate, key = self.directory / "server.pem", self.directory / "server.key"
        made.cert_chain_pems[0].write_to_path(str(certificate))
        made.private_key_pem.write_to_path(str(key))
        return certificate, key

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert("127.0.0.1").configure_cert(context)
        return context

    def install(self, home: Path, host: str) -> None:
        """As docker and podman keep it."""
        directory = home / ".config" / "containers" / "certs.d" / host
        directory.mkdir(parents=True)
        (directory / "ca.crt").write_bytes(self.pem.read_bytes())


@pytest.fixture
def company(tmp_path: Path) -> Authority:
    directory = tmp_path / "company"
    directory.mkdir()
    made = trustme.CA()
    made.cert_pem.write_to_path(str(directory / "ca.pem"))
    return Authority(directory, made)


@contextlib.contextmanager
def registry_with(
    tmp_path: Path, company: Authority, kind: str
) -> Iterator[tuple[str, dict[str, str]]]:
    """host:port over TLS, and headers that let a test push to ``app``."""
    directory = tmp_path / kind
    directory.mkdir()
    if kind == "htpasswd":
        with docker_registry(directory, htpasswd_auth(directory), company.pair()) as host:
            yield host, {"Authorization": f"Basic {AUTH}"}
        return
    tokens = TokenServer(directory, ttl_s=60, allow_post=kind == "post")
    with (
        tokens.run(company.context()) as realm,
        docker_registry(directory, tokens.config(realm), company.pair()) as host,
    ):
        yield host, {"Authorization": f"Bearer {tokens.jwt('app', ['pull', 'push'])}"}


def log_in(nydusify: Nydusify, host: str, kind: str) -> dict[str, str]:
    """Credentials in one of the ways that docker knows; what the environment needs."""
    docker = nydusify.directory / "docker"
    docker.mkdir(exist_ok=True)
    config: dict[str, Any] = {"auths": {host: {"auth": AUTH}}}
    env: dict[str, str] = {}
    if kind != "auths":
        answer = json.dumps({"ServerURL": host, "Username": USER, "Secret": PASSWORD})
        helper = docker / "docker-credential-test"
        helper.write_text(
            f'#!/bin/sh\nread server\n[ "$server" = {host} ] || '
            f"{{ echo credentials not found in native keychain; exit 1; }}\necho '{answer}'\n"
        )
        helper.chmod(0o755)
        env["PATH"] = f"{docker}:{os.environ['PATH']}"
        config = {"credHelpers": {host: "test"}} if kind == "helper" else {"credsStore": "test"}
    (docker / "config.json").write_text(json.dumps(config))
    return env


@pytest.mark.parametrize(
    ("kind", "login"), [("htpasswd", "auths"), ("post", "helper"), ("get", "store")]
)
def test_all_commands_over_tls_and_with_a_login(
    registry: str, repo: str, tmp_path: Path, company: Authority, nydusify: Nydusify,
    kind: str, login: str,
) -> None:  # fmt: skip
    with registry_with(tmp_path, company, kind) as (host, headers):
        with Pusher(host, "app", headers, ca=company.pem) as push:
            push_image(push, "v1", two_layers())
        company.install(nydusify.directory, host)
        env = log_in(nydusify, host, login)
        source, target, far = f"{host}/app:v1", f"{host}/app/nydus:n", f"{registry}/{repo}:n"

        def run(*words: str) -> str:
            said = nydusify.run(*words, env=env)
            assert PASSWORD not in said
            assert AUTH not in said
            return said

        run("convert", "--source", source, "--target", target, "--build-cache-tag", "cache")
        said = run(
            "convert", "--source", source, "--target", f"{host}/app/nydus:again",
            "--build-cache-tag", "cache", "--with-referrer",
        )  # fmt: skip
        assert "cached" in said
        assert "verified image" in run("check", "--source", source, "--target", target)
        # From https with a login to plain http without one, in one run, and back.
        run("copy", "--source", target, "--target", far)
        run("copy", "--source", far, "--target", f"{host}/back:n")
        assert "verified image" in run("check", "--source", source, "--target", far)
        run("convert", "--source", far, "--target", f"{host}/oci:v", "--reverse")
        (nydusify.directory / "list").write_text("/dir/new\n")
        run(
            "optimize", "--source", target, "--target", f"{host}/app/fast:n",
            "--prefetch-files", "list",
        )  # fmt: skip
        run("chunkdict", "generate", "--sources", target, "--target", f"{host}/dict:d")
        run(
            "convert", "--source", source, "--target", far, "--chunk-dict",
            f"bootstrap:registry:{host}/dict:d",
        )  # fmt: skip
        if os.geteuid() == 0:
            mount_and_read(nydusify, target, env)


def mount_and_read(nydusify: Nydusify, target: str, env: dict[str, str], *more: str) -> None:
    """The tree while ``nydusify mount`` runs; a signal is its usual end."""
    log = nydusify.directory / "mount.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            nydusify.argv("mount", "--target", target, "--mount-path", "mnt", *more),
            cwd=nydusify.directory, env=nydusify.environment(env), stderr=out,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while b"Please send signal" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        tree = nydusify.directory / "mnt"
        assert (tree / "dir" / "new").read_bytes() == b"new" * 1000
        process.send_signal(signal.SIGINT)
        assert process.wait(90) == 0
    finally:
        process.kill()
        process.wait()
    assert "Received Signal: interrupt" in log.read_text()
    assert not (nydusify.directory / "mnt").exists()


def test_trust_is_for_the_side_that_it_was_given_to(
    tmp_path: Path, company: Authority, nydusify: Nydusify
) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    with (
        docker_registry(a, tls=company.pair()) as one,
        docker_registry(b, tls=company.pair()) as two,
    ):
        with Pusher(one, "app", ca=company.pem) as push:
            push_image(push, "v1", two_layers())
        words = ("convert", "--source", f"{one}/app:v1", "--target", f"{two}/app:n")
        said = nydusify.run(*words, code=1)
        assert one in said
        assert "certificate refused" in said
        assert "certs.d" in said
        said = nydusify.run(*words, "--source-insecure", code=1)
        assert two in said
        assert "certificate refused" in said
        nydusify.run(*words, "--source-insecure", "--target-insecure")
        said = nydusify.run("mount", "--target", f"{two}/app:n", code=1)
        assert "certificate refused" in said
        nydusify.run("mount", "--target", f"{two}/app:n", "--plain-http", code=1)
        if os.geteuid() == 0:
            mount_and_read(nydusify, f"{two}/app:n", {}, "--target-insecure")


def test_secrets_go_to_the_host_that_they_are_for(tmp_path: Path, nydusify: Nydusify) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    with (
        docker_registry(a, htpasswd_auth(a)) as one,
        docker_registry(b, htpasswd_auth(b)) as two,
    ):
        with Pusher(one, "app", {"Authorization": f"Basic {AUTH}"}) as push:
            push_image(push, "v1", two_layers())
        words = ("copy", "--source", f"{one}/app:v1", "--target", f"{two}/app:v1")
        pull = {"IMAGE_PULL_AUTH": AUTH}
        said = nydusify.run(*words, env=pull, code=1)  # it is for what is pulled
        assert "401" in said
        nydusify.run(*words, "--username", f"{USER}:{PASSWORD}", env=pull)
        nydusify.run(
            *words, env={**pull, "NYDUSIFY_USERNAME": USER, "NYDUSIFY_PASSWORD": PASSWORD}
        )
        said = nydusify.run(*words, env={**pull, "NYDUSIFY_USERNAME": f"{USER}:wrong"}, code=1)
        assert "docker login" in said
        assert "wrong" not in said.replace("wrong or missing", "")


def test_others_read_what_was_pushed_with_a_login(
    tmp_path: Path, company: Authority, nydusify: Nydusify
) -> None:
    """crane and skopeo, each in its own way of logins and authorities."""
    with registry_with(tmp_path, company, "htpasswd") as (host, headers):
        with Pusher(host, "app", headers, ca=company.pem) as push:
            push_image(push, "v1", two_layers())
        company.install(nydusify.directory, host)
        env = log_in(nydusify, host, "auths")
        nydusify.run(
            "convert", "--source", f"{host}/app:v1", "--target", f"{host}/app:n", env=env
        )
        crane = peer("crane")
        theirs = {**nydusify.environment(env), "SSL_CERT_FILE": str(company.pem)}
        digest = subprocess.run(
            [crane, "digest", f"{host}/app:n"], env=theirs, check=True, capture_output=True
        ).stdout.decode()
        subprocess.run([crane, "validate", "--fast", "--remote", f"{host}/app:n"], env=theirs,
                       check=True, capture_output=True)  # fmt: skip
        skopeo = peer("skopeo")
        found = subprocess.run(
            [skopeo, "inspect", "--raw", "--authfile", nydusify.directory / "docker/config.json",
             f"docker://{host}/app:n"],
            env=theirs, check=True, capture_output=True,
        ).stdout  # fmt: skip
        assert json.loads(found)["layers"]
        assert digest.startswith("sha256:")


def test_certificates_are_found_for_their_host_alone(tmp_path: Path) -> None:
    place = tmp_path / ".config" / "docker" / "certs.d"
    mine, other = place / "reg.example:5000", place / "other.example"
    for directory in (mine, other):
        directory.mkdir(parents=True)
        (directory / "ca.crt").write_text("x")
    (mine / "me.cert").write_text("x")
    environ = {"HOME": str(tmp_path)}
    with pytest.raises(UsageError, match="without its key"):
        find_tls("reg.example:5000", environ)
    (mine / "me.key").write_text("x")
    found = find_tls("reg.example:5000", environ)
    assert found.ca_cert_files == (str(mine / "ca.crt"),)
    assert (found.client_cert_file, found.client_key_file) == (
        str(mine / "me.cert"), str(mine / "me.key"),
    )  # fmt: skip
    assert find_tls("reg.example", environ).ca_cert_files == ()
    assert find_tls("other.example:443", environ).ca_cert_files == (str(other / "ca.crt"),)


def test_all_goes_through_the_proxy_of_the_environment(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, tmp_path: Path
) -> None:
    """Also what the builder and the daemon read: the registry's name is known to the proxy only."""
    push_image(push, "v1", two_layers())
    behind = Proxy(registry)

    def route(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        assert path.startswith("http://registry.test/v2/"), path
        behind.host = "registry.test"
        return behind.route(method, path.removeprefix("http://registry.test"), headers, body)

    with RangeServer(tmp_path, route=route) as server:
        env = {"HTTP_PROXY": server.url, "http_proxy": server.url, "NO_PROXY": "other.test"}
        (nydusify.directory / "list").write_text("/dir/new\n")
        source, target, fast = (f"registry.test/{repo}:{tag}" for tag in ("v1", "n", "fast"))
        for words in (
            ("convert", "--source", source, "--target", target),
            ("check", "--source", source, "--target", target),
            ("optimize", "--source", target, "--target", fast, "--prefetch-files", "list"),
        ):
            nydusify.run(*words, "--plain-http", env=env)
        if os.geteuid() == 0:
            before = sum("GET" in line and "/blobs/" in line for line in behind.asked)
            mount_and_read(nydusify, target, env, "--plain-http")
            assert sum("GET" in line and "/blobs/" in line for line in behind.asked) > before + 1
