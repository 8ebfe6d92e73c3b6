"""Registries that do not do as most do: no HEAD, ranges, parts or mounts, tokens that end."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from faulty import Answer, Fault, Proxy, faulty, gone, lost, status
from oci_kit import (
    Entry,
    Layer,
    Nydusify,
    get,
    layer_tar,
    push_image,
    tags,
    two_layers,
)
from servers import AUTH, Pusher, TokenServer, docker_registry

from nydus_fscache.cli.nydusify import copy as copy_command
from nydus_fscache.cli.nydusify.main import main
from nydus_fscache.convert.move import Attempts

BLOB, MANIFEST, UPLOADS = r"/blobs/sha256:", r"/manifests/", r"/blobs/uploads/"
REFUSED = status(405)


def large() -> list[Layer]:
    """Its blob goes in two parts."""
    return [*two_layers(), Layer(layer_tar([Entry("r", os.urandom(6 << 20))]))]


WAYS = {
    "no-head": [Fault("HEAD", r"/(blobs|manifests)/", REFUSED, 999)],
    "no-ranges": [Fault("GET", BLOB, lambda answer: answer, 999)],
    "no-parts": [Fault("PATCH", UPLOADS, REFUSED, 999)],
    "500-in-the-middle": [Fault("PATCH", UPLOADS, status(500), 1)],
    "lost-answer": [Fault("PATCH", UPLOADS, lost, 1), Fault("PUT", UPLOADS, lost, 1)],
    "no-answer": [Fault("PATCH", UPLOADS, gone, 1), Fault("POST", UPLOADS, gone, 1)],
    "half-a-part": [Fault("PATCH", UPLOADS, lost, 1, part=True)],
    "lost-manifest": [Fault("PUT", MANIFEST, lost, 1)],
}  # fmt: skip


def without_ranges(proxy: Proxy) -> None:
    """It answers with the whole blob."""
    plain = proxy.route

    def route(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        headers.pop("Range", None)
        return plain(method, path, headers, body)

    proxy.route = route  # type: ignore[method-assign]


@pytest.mark.parametrize("way", WAYS)
def test_convert_and_copy_go_on(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, proxy: Proxy, way: str
) -> None:
    push_image(push, "v1", large())
    source, target = f"{proxy.host}/{repo}:v1", f"{proxy.host}/{repo}-t:n"
    if way == "no-ranges":
        without_ranges(proxy)
    faults = [(fault, fault.times) for fault in WAYS[way]]
    words = {
        "convert": ("convert", "--source", source, "--target", target),
        "copy": ("copy", "--source", target, "--target", f"{proxy.host}/{repo}-u:n"),
    }
    for command, argv in words.items():
        proxy.faults = [
            Fault(f.method, f.path, f.answer, times, part=f.part) for f, times in faults
        ]
        if command == "copy":  # not taken over within the registry
            proxy.faults.append(Fault("POST", r"mount=", status(403), 999))
        nydusify.run(*argv)
        met = [fault.times == 0 or 900 < fault.times < 999 for fault in proxy.faults]
        assert all(met), (command, proxy.faults, proxy.asked[-40:])
    proxy.faults = []
    assert get(registry, f"{repo}-t", "n").content == get(registry, f"{repo}-u", "n").content
    said = nydusify.run(
        "check", "--source", f"{registry}/{repo}:v1", "--target", f"{registry}/{repo}-u:n"
    )
    assert "verified image" in said
    assert nydusify.left() == ["output"]


def test_whatever_pushes_takes_a_registry_without_parts(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, proxy: Proxy
) -> None:
    push_image(push, "v1", large())
    source, target = f"{registry}/{repo}:v1", f"{registry}/{repo}:n"
    nydusify.run("convert", "--source", source, "--target", target, "--build-cache-tag", "c")
    proxy.faults = [Fault("PATCH", UPLOADS, REFUSED, 999)]
    here = nydusify.directory
    (here / "list").write_text("/r\n")
    (here / "upper").mkdir()
    (here / "upper" / "new").write_bytes(os.urandom(6 << 20))
    for command in (
        ("optimize", "--source", target, "--prefetch-files", "list"),
        ("commit", "--source", target, "--upper-dir", "upper"),
        ("convert", "--source", target, "--reverse"),
        ("convert", "--source", source, "--build-cache", f"{registry}/{repo}:c"),
        ("chunkdict", "generate", "--sources", target),
    ):
        made = f"{proxy.host}/{repo}-{command[0]}{len(command)}:n"
        nydusify.run(*command, "--target", made)
        nydusify.run("check", "--target", made)
    # The cache itself in such a repository.
    words = ("--target", f"{registry}/{repo}:again", "--build-cache", f"{proxy.host}/{repo}-c:c")
    said = nydusify.run("convert", "--source", source, *words)
    assert "pushed cache" in said
    assert "was not pushed" not in said


@pytest.mark.parametrize("answer", [201, 202, 403, 404, 405])
def test_blobs_are_taken_over_or_sent(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, proxy: Proxy, answer: int
) -> None:
    push_image(push, "v1", two_layers())
    if answer == 202:  # it begins an upload instead, which is given back
        plain = proxy.route

        def route(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
            return plain(method, path.partition("?mount=")[0], headers, body)

        proxy.route = route  # type: ignore[method-assign]
    elif answer != 201:
        proxy.faults = [Fault("POST", r"mount=", status(answer), 99)]
    source, target = f"{proxy.host}/{repo}:v1", f"{proxy.host}/{repo}-t:v1"
    said = nydusify.run("copy", "--source", source, "--target", target)
    assert said.count(": mounted") == (3 if answer == 201 else 0)
    assert get(registry, f"{repo}-t", "v1").content == get(registry, repo, "v1").content
    deleted = [line for line in proxy.asked if line.startswith("DELETE")]
    assert len(deleted) == (3 if answer == 202 else 0)


def test_a_token_that_ends_in_the_middle(tmp_path: Path, nydusify: Nydusify) -> None:
    """Between two parts of an upload, and between two pieces of a download."""
    tokens = TokenServer(tmp_path)
    with tokens.run() as realm, docker_registry(tmp_path, tokens.config(realm)) as host:
        bearer = {"Authorization": f"Bearer {tokens.jwt('app', ['pull', 'push'])}"}
        with Pusher(host, "app", bearer) as push:
            push_image(push, "v1", large())
        docker = nydusify.directory / "docker"
        docker.mkdir()
        directory = tmp_path / "proxy"
        directory.mkdir()
        with faulty(host, directory) as proxy:
            login = f'{{"auths": {{"{proxy.host}": {{"auth": "{AUTH}"}}}}}}'
            (docker / "config.json").write_text(login)
            words = ("convert", "--source", f"{proxy.host}/app:v1", "--target")
            nydusify.run(*words, f"{proxy.host}/app/good:n")
            before = len(tokens.asked)

            def ended(scope: str) -> Fault:
                challenge = f'Bearer realm="{realm}/token",service="test registry",scope="{scope}"'
                headers = {"WWW-Authenticate": f'{challenge},error="invalid_token"'}
                return Fault("?", "", status(401, headers), 1)

            pulled, pushed = ended("repository:app:pull"), ended("repository:app/t:pull,push")
            for fault, method, path in (
                (pulled, "GET", BLOB), (pushed, "PATCH", UPLOADS),
                (ended("repository:app/t:pull,push"), "PUT", UPLOADS),
            ):  # fmt: skip
                fault.method, fault.path = method, path
                proxy.faults.append(fault)
            nydusify.run(*words, f"{proxy.host}/app/t:n")
            assert [fault.times for fault in proxy.faults] == [0, 0, 0]
            assert len(tokens.asked) >= before + 3
            nydusify.run("check", "--source", f"{proxy.host}/app:v1",
                         "--target", f"{proxy.host}/app/t:n")  # fmt: skip


def test_a_source_that_dies_leaves_no_tag(
    registry: str, repo: str, push: Pusher, proxy: Proxy, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    push_image(push, "v1", large())
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(copy_command, "Attempts", lambda: Attempts(2, 0.01))

    def watch(_: int, line: str) -> None:
        if "/blobs/" in line:
            proxy.faults = [Fault("GET", "", gone, 999)]

    proxy.watch = watch
    words = ["copy", "--source", f"{proxy.host}/{repo}:v1", "--target", f"{registry}/{repo}-t:v1"]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert proxy.host in said.splitlines()[-1]
    assert tags(registry, f"{repo}-t") == []
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("where", ["blob", "manifest", "upload"])
def test_an_interrupt_while_a_registry_is_silent(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, proxy: Proxy, where: str
) -> None:
    """Its answers are not waited for, nor asked for again."""
    push_image(push, "v1", large())
    silent, over = threading.Event(), threading.Event()
    method, path = {
        "blob": ("GET", "/blobs/"), "manifest": ("GET", "/manifests/"), "upload": ("PATCH", "/"),
    }[where]  # fmt: skip

    def watch(_: int, line: str) -> None:
        if line.startswith(method) and path in line:
            silent.set()
            over.wait(120)

    proxy.watch = watch
    process = subprocess.Popen(
        nydusify.argv("convert", "--source", f"{proxy.host}/{repo}:v1",
                      "--target", f"{proxy.host}/{repo}-t:n"),
        cwd=nydusify.directory, env=nydusify.environment(), stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert silent.wait(60)
        time.sleep(0.2)  # it is in the call by now
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    finally:
        over.set()
        process.kill()
    assert process.returncode == 130, said.decode()
    assert nydusify.left() == []
