"""Nydus images out of Debian's docker-registry: found, verified, refused with the reason."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rangeserver import RangeServer
from servers import (
    AUTH,
    OCI_INDEX,
    OCI_MANIFEST,
    Pusher,
    TokenServer,
    bootstrap_layer,
    docker_registry,
    nydus_manifest,
)

from nydus_fscache.backend.make import make_backend
from nydus_fscache.errors import BackendError, BadImage
from nydus_fscache.registry.layer import extract_bootstrap
from nydus_fscache.registry.pull import pull_bootstrap

REPO = "team/app"
BOOT = random.Random(2).randbytes(100_000)
BLOBS = [random.Random(n).randbytes(50_000 + n) for n in range(3)]
NO_LOGIN = {"HOME": "/nonexistent"}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture
def push(host: str) -> Iterator[Pusher]:
    with Pusher(host, REPO) as push:
        yield push


def pull(name: str):
    return pull_bootstrap(name, plain_http=True, environ=NO_LOGIN)


def test_by_tag_and_by_digest(host: str, push: Pusher) -> None:
    document = nydus_manifest(push, bootstrap_layer(BOOT), BLOBS)
    digest = push.manifest("v1", document)
    for name in (f"{host}/{REPO}:v1", f"{host}/{REPO}@{digest}", f"{host}/{REPO}:v1@{digest}"):
        pulled = pull(name)
        assert pulled.bootstrap == BOOT
        assert pulled.manifest_digest == digest
        assert pulled.reference == name
        assert list(pulled.blob_sizes.values()) == [len(blob) for blob in BLOBS]
    backend = make_backend(pulled.backend)
    try:
        for blob_id, blob in zip(pulled.blob_sizes, BLOBS, strict=True):
            assert backend.read(blob_id, 7, 70, deadline=time.monotonic() + 5) == blob[7:77]
    finally:
        backend.close()


def test_index_names_the_nydus_image_of_this_machine(host: str, push: Pusher) -> None:
    import platform

    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    nydus = nydus_manifest(push, bootstrap_layer(BOOT), BLOBS)
    plain = {**nydus, "layers": nydus["layers"][:1]}
    entries = []
    for document, arch, features in [
        (plain, machine, None),
        (plain, "s390x", ["nydus.remoteimage.v1"]),
        (nydus, machine, ["nydus.remoteimage.v1"]),
    ]:
        where = {"os": "linux", "architecture": arch}
        if features:
            where["os.features"] = features
        digest = push.manifest(f"part-{len(entries)}", document)
        size = len(json.dumps(document))
        entries.append(
            {"mediaType": OCI_MANIFEST, "digest": digest, "size": size, "platform": where}
        )
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    push.manifest("multi", index)
    pulled = pull(f"{host}/{REPO}:multi")
    assert pulled.bootstrap == BOOT
    assert pulled.manifest_digest == entries[2]["digest"]

    push.manifest("foreign", {**index, "manifests": entries[1:2]})
    with pytest.raises(BadImage, match="no image for linux/") as caught:
        pull(f"{host}/{REPO}:foreign")
    assert "s390x" in (caught.value.hint or "")


def test_refused_with_the_reason(host: str, push: Pusher) -> None:
    good = nydus_manifest(push, bootstrap_layer(BOOT), BLOBS)
    last = good["layers"][-1]

    def with_last(**changes: object) -> dict[str, object]:
        return {**good, "layers": [*good["layers"][:-1], {**last, **changes}]}

    cases = [
        ({**good, "layers": good["layers"][:-1]}, "no Nydus image"),
        (
            with_last(
                annotations={**last["annotations"], "containerd.io/snapshot/nydus-fs-version": "5"}
            ),
            "RAFS v5",
        ),
        (with_last(size=last["size"] + 1), "by the manifest"),
        (with_last(digest=good["layers"][0]["digest"], size=len(BLOBS[0])), "damaged"),
    ]
    for number, (document, message) in enumerate(cases):
        push.manifest(f"bad-{number}", document)
        with pytest.raises(BadImage, match=message):
            pull(f"{host}/{REPO}:bad-{number}")
    with pytest.raises(BackendError, match=r"manifest team/app:none: .* answers 404"):
        pull(f"{host}/{REPO}:none")


def test_what_a_faulty_registry_sends_is_noticed(tmp_path: Path) -> None:
    layer = bootstrap_layer(BOOT)
    documents: dict[str, bytes] = {}

    def route(
        method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes] | None:
        if "/manifests/" in path:
            return 200, {"Content-Type": OCI_MANIFEST}, documents["manifest"]
        return None

    with RangeServer(tmp_path, route=route) as server:
        name = f"{server.host}/a"
        documents["manifest"] = b'{"layers": []}'
        with pytest.raises(BadImage, match="manifest with digest"):
            pull(f"{name}@sha256:{'0' * 64}")
        (tmp_path / ("1" * 64)).write_bytes(layer)
        descriptor = {
            "digest": f"sha256:{'1' * 64}",
            "size": len(layer),
            "annotations": {"containerd.io/snapshot/nydus-bootstrap": "true"},
        }
        documents["manifest"] = json.dumps({"layers": [descriptor]}).encode()
        with pytest.raises(BadImage, match="does not match its digest"):
            pull(name)
        for document in (
            b"",
            b"[]",
            b"[" * 100_000,
            b"{}",
            b'{"layers": 5}',
            b'{"layers": [{"digest": "md5:0"}]}',
            json.dumps({"layers": [{**descriptor, "size": -1}]}).encode(),
            json.dumps({"layers": [{**descriptor, "size": 1 << 61}]}).encode(),
        ):
            documents["manifest"] = document
            with pytest.raises(BadImage):
                pull(name)
        documents["manifest"] = b" " * (9 << 20)
        with pytest.raises(BackendError, match="more than"):
            pull(name)


def test_private_registry_with_docker_login(tmp_path: Path) -> None:
    tokens = TokenServer(tmp_path)
    with tokens.run() as realm, docker_registry(tmp_path, tokens.config(realm)) as host:
        bearer = {"Authorization": f"Bearer {tokens.jwt(REPO, ['pull', 'push'])}"}
        with Pusher(host, REPO, bearer) as push:
            push.nydus_image("v1", BOOT, BLOBS)
        login = tmp_path / "config.json"
        login.write_text(json.dumps({"auths": {host: {"auth": AUTH}}}))
        environ = {"DOCKER_CONFIG": str(tmp_path)}
        pulled = pull_bootstrap(f"{host}/{REPO}:v1", plain_http=True, environ=environ)
        assert pulled.bootstrap == BOOT
        assert AUTH not in repr(pulled)
        environ = {"IMAGE_PULL_AUTH": base64.b64encode(b"alice:guess").decode()}
        with pytest.raises(BackendError, match="401"):
            pull_bootstrap(f"{host}/{REPO}:v1", plain_http=True, environ=environ)


def tar_of(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size, member.type = len(data), kind
        tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def test_layers_of_all_kinds() -> None:
    plain = tar_of("image/image.boot", BOOT)
    members = gzip.compress(plain[:5000]) + gzip.compress(plain[5000:])
    for layer in (plain, gzip.compress(plain), members, tar_of("./image/image.boot", BOOT)):
        assert extract_bootstrap(layer) == BOOT


def test_layers_that_are_wrong() -> None:
    packed = gzip.compress(tar_of("image/image.boot", BOOT))
    for layer in (
        b"",
        b"no tar at all" * 100,
        packed[: len(packed) // 2],
        packed[:100] + b"\xff" * 50 + packed[150:],
        tar_of("image/image.boot", BOOT)[:50_000],
        tar_of("image/other", BOOT),
        tar_of("image/image.boot", b""),
        tar_of("image/image.boot", b"", tarfile.SYMTYPE),
    ):
        with pytest.raises(BadImage):
            extract_bootstrap(layer)


def test_bomb() -> None:
    bomb = gzip.compress(tar_of("image/filler", bytes(200 << 20)), 9)
    started = time.monotonic()
    with pytest.raises(BadImage, match="far too much"):
        extract_bootstrap(bomb)
    assert time.monotonic() - started < 5
