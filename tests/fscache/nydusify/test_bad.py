"""Bad input, refusals and kills: a clear message, no tag, nothing left behind."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from oci_kit import (
    BASE,
    OCI_GZIP,
    OCI_TAR,
    PREFIX,
    Entry,
    Layer,
    Nydusify,
    get,
    layer_tar,
    noise,
    push_image,
    tags,
    two_layers,
)
from servers import AUTH, PASSWORD, USER, Pusher, docker_registry, htpasswd_auth
from watched import family


def refused(registry: str, repo: str, nydusify: Nydusify, *words: str) -> str:
    said = nydusify.run(
        "convert", "--source", f"{registry}/{repo}:v1", "--target-suffix", "-n", *words, code=1
    )
    assert tags(registry, repo) == ["v1"]
    assert nydusify.left() == []
    return said


def described(push: Pusher, data: bytes, kind: str = OCI_GZIP) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{push.blob(data)}", "size": len(data)}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "is foreign"),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "is encrypted"),
        ("application/vnd.example.model", "unknown type"),
    ],
)
def test_layers_that_cannot_be_converted(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, kind: str, said: str
) -> None:
    layer = Layer(layer_tar(BASE))
    push_image(
        push, "v1", [layer], change={"layers": [described(push, layer.stored(), kind)]}
    )  # fmt: skip
    assert said in refused(registry, repo, nydusify)


@pytest.mark.parametrize("spoil", ["cut", "garbage", "tar", "dots", "absolute"])
def test_layers_that_are_damaged(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, spoil: str
) -> None:
    good = Layer(layer_tar(BASE)).stored()
    data = {
        "cut": good[:-100],
        "garbage": good[: len(good) // 2] + bytes(100) + good[len(good) // 2 + 100 :],
        "tar": gzip.compress(layer_tar(BASE)[:1_000_000]),
        "dots": gzip.compress(layer_tar([Entry("../../etc/passwd", b"x")])),
        "absolute": gzip.compress(b"not a tar" * 1000),
    }[spoil]
    layers = [described(push, good), described(push, data)]
    config = two_layers()
    push_image(push, "v1", config, change={"layers": layers})
    assert "layer sha256:" in refused(registry, repo, nydusify)


def test_a_layer_with_another_digest(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, tmp_path: Path
) -> None:
    from oci_kit import peer

    push_image(push, "v1", two_layers())
    layout = tmp_path / "layout"
    subprocess.run(
        [peer("crane"), "pull", "--format", "oci", f"{registry}/{repo}:v1", str(layout)], check=True
    )
    biggest = max((layout / "blobs" / "sha256").iterdir(), key=lambda p: p.stat().st_size)
    data = gzip.compress(layer_tar([Entry("evil", noise(100_000, 3))]))
    biggest.write_bytes(data.ljust(biggest.stat().st_size, b"\0"))
    said = nydusify.run(
        "convert", "--source", f"{registry}/{repo}:v1", "--source-archive", str(layout),
        "--target", f"{registry}/{repo}:n", code=1,
    )  # fmt: skip
    assert "came as sha256:" in said
    assert tags(registry, repo) == ["v1"]


def test_schema_1_is_refused_with_the_way_out(
    registry: str, nydusify: Nydusify, tmp_path: Path
) -> None:
    layout = tmp_path / "layout"
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    kind = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    body = json.dumps({"schemaVersion": 1, "name": "x", "fsLayers": []}).encode()
    digest = hashlib.sha256(body).hexdigest()
    (blobs / digest).write_bytes(body)
    entry = {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(body)}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    said = nydusify.run(
        "convert", "--source", "x:1", "--source-archive", str(layout),
        "--target", f"{registry}/x:n", code=1,
    )  # fmt: skip
    assert "schema 1" in said


def test_what_lies_in_the_work_directory_stays(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    push_image(push, "v1", two_layers())
    work = nydusify.directory / "tmp"
    (work / "nydusify-mine").mkdir(parents=True)
    (work / "nydusify-mine" / "note").write_text("mine")
    nydusify.run("convert", "--source", f"{registry}/{repo}:v1", "--target-suffix", "-n")
    assert (work / "nydusify-mine" / "note").read_text() == "mine"
    assert [p.name for p in work.iterdir()] == ["nydusify-mine"]


def test_the_cache_is_keyed_by_options_too(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    push_image(push, "v1", two_layers())
    words = (
        "convert", "--source", f"{registry}/{repo}:v1", "--target", f"{registry}/{repo}:n",
        "--build-cache", f"{registry}/{repo}-cache:c",
    )  # fmt: skip
    assert "cache not found" in nydusify.run(*words).replace(f"{registry}/{repo}-cache:c ", "")
    first = get(registry, repo, "n").content
    said = nydusify.run(*words)
    assert said.count(": cached") == 2
    assert "(cached 2/2), elapse" in said
    assert get(registry, repo, "n").content == first
    assert ": cached" not in nydusify.run(*words, "--compressor", "lz4_block")
    layers = get(registry, f"{repo}-cache", "c").json()["layers"]
    assert len(layers) == 4
    assert layers[0]["annotations"][f"{PREFIX}nydus-source-digest"].startswith("sha256:")


def test_credentials_and_their_absence(tmp_path: Path, nydusify: Nydusify) -> None:
    with docker_registry(tmp_path, htpasswd_auth(tmp_path)) as host:
        headers = {"Authorization": f"Basic {AUTH}"}
        with Pusher(host, "app", headers) as push:
            push_image(push, "v1", two_layers())
        words = ("convert", "--source", f"{host}/app:v1", "--target", f"{host}/app:n")
        said = nydusify.run(*words, code=1)
        assert "docker login" in said
        nydusify.run(*words, "--username", f"{USER}:{PASSWORD}")
        docker = nydusify.directory / "docker"
        docker.mkdir()
        (docker / "config.json").write_text(json.dumps({"auths": {host: {"auth": AUTH}}}))
        said = nydusify.run("check", "--source", f"{host}/app:v1", "--target", f"{host}/app:n")
        assert "verified image" in said
        assert PASSWORD not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify, number: int
) -> None:
    builder = nydusify.directory / "slow"
    builder.write_text(f"#!/bin/sh\necho started > {nydusify.directory}/started\nexec sleep 1000\n")
    builder.chmod(0o755)
    push_image(push, "v1", two_layers())
    process = subprocess.Popen(
        nydusify.argv(
            "convert", "--source", f"{registry}/{repo}:v1", "--target-suffix", "-n",
            "--nydus-image", str(builder),
        ),
        cwd=nydusify.directory, env=nydusify.environment(), stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        wait_for(nydusify.directory / "started")
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert b"Received Signal" in said
    assert nydusify.left() == ["slow", "started"]
    assert tags(registry, repo) == ["v1"]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_kills_at_random_moments(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    """Killed and run again: the same result, and what was pushed is not built again."""
    layers = [Layer(layer_tar([Entry(f"f{i}", noise(400_000, i))]), OCI_TAR) for i in range(4)]
    push_image(push, "v1", layers)
    source = f"{registry}/{repo}:v1"
    nydusify.run("convert", "--source", source, "--target", f"{registry}/{repo}:good")
    good = get(registry, repo, "good").content
    target = f"{registry}/{repo}-t:n"
    moments = random.Random(7)
    said = b""
    for _ in range(int(os.environ.get("NYDUS_TEST_KILLS", "4"))):
        process = subprocess.Popen(
            nydusify.argv("convert", "--source", source, "--target", target),
            cwd=nydusify.directory, env=nydusify.environment(), stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            process.wait(moments.uniform(0.3, 3.0))
        except subprocess.TimeoutExpired:
            pids = family(process.pid)
            process.kill()
            process.wait()
            until_gone(pids)
        _, said = process.communicate()
        answer = get(registry, f"{repo}-t", "n")
        assert answer.status_code == 404 or answer.content == good
    last = nydusify.run("convert", "--source", source, "--target", target)
    assert get(registry, f"{repo}-t", "n").content == good
    if process.returncode and b"pushed image" not in said:  # its layers are not built again
        assert not built(said.decode()) & built(last)
    assert nydusify.left() == []


def test_two_at_once_to_one_target(
    registry: str, repo: str, push: Pusher, nydusify: Nydusify
) -> None:
    """In one work directory, and with one journal."""
    push_image(push, "v1", two_layers())
    source, target = f"{registry}/{repo}:v1", f"{registry}/{repo}:n"
    words = nydusify.argv("convert", "--source", source, "--target", target)
    both = [
        subprocess.Popen(
            words, cwd=nydusify.directory, env=nydusify.environment(), stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said.decode()
    assert nydusify.left() == []
    assert "verified image" in nydusify.run("check", "--source", source, "--target", target)


def until_gone(pids: list[int]) -> None:
    """Builders wait at named pipes: nobody would ever come."""
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/exe").exists() for pid in pids):
        assert time.monotonic() < deadline, pids
        time.sleep(0.02)


def built(log: str) -> set[str]:
    lines = [line for line in log.splitlines() if ": converted" in line]
    return {line.split(": converted")[0][-12:] for line in lines}
